"""The contract of experts: each forecasts the labels of the next K steps of one workload's workflows, and learns from outcomes.

A label's index in an expert's arrays is its column (see `labels.py`): column 0 is the end of the workflow, each agent has one
of the columns after it. New ones may come at any time; an expert gives an outcome it has not seen a small probability, never 0.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar, Generic, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt

from pbkv_cluster.core.config import PredictorConfig
from pbkv_cluster.core.registry import Registry
from pbkv_cluster.predictor_service.experts.labels import Labels
from pbkv_cluster.predictor_service.training.jobs import TrainingJob
from pbkv_cluster.predictor_service.workflow.situation import Situation

F = TypeVar("F")

Floats = npt.NDArray[np.float32]


class TrainingExample(NamedTuple, Generic[F]):
    """Features of one moment, and the outcomes that followed."""

    features: F
    targets: tuple[int, ...]  # column of each of the next K steps; -1: its label has left; 0 from the workflow's end on


class Expert(ABC, Generic[F]):
    """One model of one workload, used from one thread. Equal calls give equal forecasts: no clock, seeded random numbers."""

    learns_workflows: ClassVar[bool] = False  # whether `learn_workflow` is to be called

    def __init__(self, config: PredictorConfig, labels: Labels) -> None:
        """Args:
        config: the horizon K, and the expert's own settings.
        labels: the workload's; they grow while the expert lives.
        """
        self.horizon = config.horizon
        self.labels = labels

    @abstractmethod
    def features(self, situation: Situation) -> F:
        """What the expert reads of a situation. Kept, and given to `forecast` and `learn`, until it has been learnt from."""

    @abstractmethod
    def forecast(self, features: Sequence[F]) -> Floats:
        """Probabilities [len(features), K, len(labels)]; those of one step add up to 1, or are all 0 if the expert abstains.

        Column 0 of a step is the probability that the workflow has ended by then.
        """

    @abstractmethod
    def learn(self, examples: Sequence[TrainingExample[F]]) -> None:
        """Learns from examples. Each moment comes once, as soon as the outcomes of its K steps are known."""

    def learn_workflow(self, examples: Sequence[TrainingExample[F]]) -> None:  # most learn from each step
        """Learns from a whole workflow that has ended: the examples of all its moments, in order."""

    def training_due(self, now: bool) -> TrainingJob[Any] | None:
        """The job that is to be run elsewhere, if one is due, or, with `now`, if there is anything to learn.

        Its result goes to `training_done`. Only one job at a time: none is due while another is under way.
        """
        return None

    def training_done(self, result: Any) -> None:  # most have no jobs
        """Takes the result of the job that was due; None: it failed."""

    @abstractmethod
    def renumber(self, columns: Sequence[int]) -> None:
        """Labels have left: what was column `columns[i]` is column i from now on. What was learnt of the others is dropped."""

    @abstractmethod
    def dump(self) -> dict[str, Any]:
        """What has been learnt: numbers, strings, lists, dicts with strings for keys, and numpy arrays."""

    @abstractmethod
    def restore(self, state: dict[str, Any]) -> None:
        """Replaces what has been learnt by a `dump`; the labels are those of that time.

        Raises:
            ValueError: the state does not fit; the expert is as before.
        """


EXPERTS: Registry[Expert[Any]] = Registry("predictor.experts")
