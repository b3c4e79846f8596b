"""The contract of experts: each forecasts the labels of the next K steps of one workload's workflows, and learns as they come.

A workload's labels have columns: column 0 is the end of the workflow, each agent has one behind it (see `labels.py`). New ones
come at any time; an expert gives what it has not seen a small chance, never none.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar, Generic, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt

from pbkv_cluster.core.config import PredictorConfig
from pbkv_cluster.core.registry import Registry
from pbkv_cluster.predictor_service.training.jobs import TrainingJob
from pbkv_cluster.predictor_service.workflow.situation import Situation
from pbkv_cluster.predictor_service.workload.labels import Labels

F = TypeVar("F")

Floats = npt.NDArray[np.float32]


class Lesson(NamedTuple, Generic[F]):
    """What came of a situation."""

    features: F
    targets: tuple[int, ...]  # column at each of the next K steps, -1 where its label has left. Behind an end come ends


class Expert(ABC, Generic[F]):
    """One model of one workload, used from one thread. Equal calls give equal forecasts: no clock, chance from a seed alone."""

    wants_whole: ClassVar[bool] = False  # see `ended`

    def __init__(self, config: PredictorConfig, labels: Labels) -> None:
        """Args:
        config: the horizon K, and what the expert has of its own.
        labels: the workload's; they grow while the expert lives.
        """
        self.horizon = config.horizon
        self.labels = labels

    @abstractmethod
    def features(self, situation: Situation) -> F:
        """What the expert reads of a situation, hashed once: it is kept for as long as forecasts or lessons may need it."""

    @abstractmethod
    def forecast(self, features: Sequence[F]) -> Floats:
        """Probabilities of shape [len(features), K, len(labels)]; those of one step add up to 1, or are all 0: it abstains.

        Step k's column 0 is the chance that the workflow has ended by then.
        """

    @abstractmethod
    def learn(self, lessons: Sequence[Lesson[F]]) -> None:
        """Takes in what has come, each situation once, as soon as its K steps are known."""

    def ended(self, lessons: Sequence[Lesson[F]]) -> None:  # most have no use for it
        """A workflow has ended: all its situations in order, targets complete. Only where `wants_whole` says so."""

    def training_due(self, now: bool) -> TrainingJob[Any] | None:
        """What is to be learnt elsewhere, if it is time for that, or `now` whatever the time. `trained` is told the result.

        Only one job at a time: none is due while another is under way.
        """
        return None

    def trained(self, result: Any) -> None:  # most have no jobs
        """Takes what came of the job that was due; None: it failed."""

    @abstractmethod
    def keep(self, columns: Sequence[int]) -> None:
        """Labels have left: the column that was `columns[i]` is column i from now on. What was learnt of others is dropped."""

    @abstractmethod
    def dump(self) -> dict[str, Any]:
        """What has been learnt: numbers, strings, lists, dicts with strings for keys, and numpy arrays."""

    @abstractmethod
    def restore(self, state: dict[str, Any]) -> None:
        """Replaces what has been learnt by a `dump`; the labels are those of then.

        Raises:
            ValueError: the state does not fit; the expert is as before.
        """


EXPERTS: Registry[Expert[Any]] = Registry("predictor.experts")
