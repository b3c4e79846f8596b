"""The contract of predictors: they learn from the events of all workflows, and forecast the next agents of each open one.

Order of calls: `restore` once, before any other; then `observe` for each event, `forecast` whenever forecasts are wanted,
`forget` for a workflow that has gone silent; `dump` at any time. A predictor is used from one thread.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, NamedTuple

from pbkv_cluster.core.forecasts.batch import Forecasts
from pbkv_cluster.core.workflow.events import WorkflowEvent
from pbkv_cluster.predictor_service.predictor.explanation import Explanation
from pbkv_cluster.predictor_service.state.file import read_state, write_state
from pbkv_cluster.predictor_service.training.jobs import AtOnce, Trainer
from pbkv_cluster.predictor_service.workload.forecast_scores import ForecastScores


class WorkloadQuality(NamedTuple):
    """How well one workload is predicted."""

    scored: int  # forecasts
    accuracy: float  # share of the latest of these whose likeliest outcome came
    predictability: float  # how much a step's agent tells of the next one, 0 to 1


@dataclass(frozen=True, slots=True)
class ForecastQuality:
    """How well forecasts have done since the start."""

    scores: ForecastScores
    workloads: dict[str, WorkloadQuality] = field(default_factory=dict)  # by name, those that are known now


class Predictor(ABC):
    """Turns events into forecasts. Equal events give equal forecasts: no clock and no unseeded random numbers."""

    kind: ClassVar[str]  # of the saved state; a file of another kind is refused
    version: ClassVar[int]  # of the saved state's format

    learning = True  # False: it forecasts from what it knows, and learns nothing
    trainer: Trainer = AtOnce()  # runs training that takes seconds; a service sets one that does not block

    @abstractmethod
    def observe(self, event: WorkflowEvent) -> None:
        """Takes the next event of a workflow.

        Its sequence number must be above that of the workflow's previous event. A number that is missing means that an event
        was lost: nothing may be learnt across the gap. After WORKFLOW_ENDED nothing is kept of the workflow itself. After
        `restore`, the events of workflows that were open then come again: what was learnt from them is not to be learnt twice.
        """

    @abstractmethod
    def forecast(self, workflows: Sequence[str], epoch: int, made_at: float) -> Forecasts:
        """One forecast for each of `workflows`, in any order, from what has been observed so far.

        Steps count in the order in which they start; parallel branches form one sequence. Agents are named by their ids. A
        workflow that was never observed is forecast as one that is about to start.

        Args:
            workflows: their ids.
            epoch: number of the forecasts, copied into each.
            made_at: time in seconds since the epoch, copied into each.
        """

    def learn(self) -> None:  # noqa: B027  # most learn at once
        """Learns from everything that `observe` has put off, so that forecasts need not wait for it."""

    def learn_some(self) -> bool:
        """Learns from a part of it, in a few milliseconds. Returns whether more is left."""
        self.learn()
        return False

    def explain(self, workflow: str) -> Explanation | None:
        """Why the forecast of a workflow is what it is; None if it was never observed. By default the forecast alone."""
        forecast = self.forecast([workflow], 0, 0.0)[0]
        return Explanation(forecast.steps, forecast.predictability, begun=forecast.step + 1)

    def quality(self) -> ForecastQuality | None:
        """How well forecasts have done; None, as by default: that is not measured."""
        return None

    def train(self) -> None:  # noqa: B027  # most have learnt everything by then
        """Submits all training that waits for more events, because no more will come."""

    @abstractmethod
    def forget(self, workflow: str) -> None:
        """Drops what is kept of a workflow, without learning that it ended. Unknown ids are ignored."""

    @abstractmethod
    def dump(self) -> bytes:
        """What has been learnt, and how far open workflows have been learnt from; nothing else of these."""

    @abstractmethod
    def restore(self, state: bytes) -> None:
        """Replaces what has been learnt by a `dump` of the same kind and version.

        Raises:
            StateRefused: the state does not fit; the predictor is as before.
        """

    def save(self, path: Path) -> None:
        """Writes what has been learnt to `path`, atomically.

        Raises:
            OSError: the file cannot be written.
        """
        write_state(path, self.kind, self.version, self.dump())

    def load(self, path: Path) -> None:
        """Reads what `save` wrote.

        Raises:
            StateRefused: the file is of another kind or version, or damaged; the predictor is as before.
            OSError: the file cannot be read.
        """
        self.restore(read_state(path, self.kind, self.version))
