"""The contract of predictors: they learn from every workflow's events and forecast each open workflow's next agents.

In order: `restore` once, before anything else; then `observe` as events come, `forecast` whenever one is wanted, `forget` for a
workflow that went silent; `dump` at any time. A predictor is used from one thread.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

from pbkv_cluster.core.config import PredictorConfig
from pbkv_cluster.core.events import WorkflowEvent
from pbkv_cluster.core.forecasts.batch import Forecasts
from pbkv_cluster.core.registry import Registry
from pbkv_cluster.predictor_service.experts import EXPERTS
from pbkv_cluster.predictor_service.predictor.explanation import Explanation
from pbkv_cluster.predictor_service.state.file import read_state, write_state
from pbkv_cluster.predictor_service.training.jobs import AtOnce, Trainer


class Predictor(ABC):
    """Turns events into forecasts. Equal events give equal forecasts: no clock and no chance inside."""

    kind: ClassVar[str]  # names the state file's contents; another kind's file is refused
    version: ClassVar[int]  # of the state's format

    learning = True  # if not, it forecasts from what it knows by now
    trainer: Trainer = AtOnce()  # runs what takes seconds to learn; a service has another, so that it need not wait

    @abstractmethod
    def observe(self, event: WorkflowEvent) -> None:
        """Takes the next event of a workflow.

        The event's sequence must be above that of the workflow's last. A missing number means that an event was lost: nothing
        may be learnt across it. After WORKFLOW_ENDED nothing is kept of the workflow itself.
        """

    @abstractmethod
    def forecast(self, workflows: Sequence[str], epoch: int, made_at: float) -> Forecasts:
        """One forecast for each of `workflows`, in any order, from what has been observed so far.

        Steps count in the order in which they start; branches that run side by side are one sequence. Agents are named by
        their id. A workflow that was never observed is forecast as one that is about to start.

        Args:
            workflows: workflow ids.
            epoch: number of the forecasts, copied into each.
            made_at: seconds since the epoch, copied into each.
        """

    def learn(self) -> None:  # noqa: B027  # most learn at once
        """Takes in what `observe` has put off, so that forecasts need not wait for it."""

    def learn_some(self) -> bool:
        """Takes in a part of it, in a few milliseconds. Returns whether more is left."""
        self.learn()
        return False

    def explain(self, workflow: str) -> Explanation | None:
        """Why the forecast of a workflow is what it is; None if it was never observed. By default the forecast alone."""
        forecast = self.forecast([workflow], 0, 0.0)[0]
        return Explanation(forecast.steps, forecast.predictability, begun=forecast.step + 1)

    def train(self) -> None:  # noqa: B027  # most have learnt by then
        """Hands what is put off until there is more of it to the trainer now: no more is to come."""

    @abstractmethod
    def forget(self, workflow: str) -> None:
        """Drops what is kept of a workflow, without learning that it ended. Unknown ids are left alone."""

    @abstractmethod
    def dump(self) -> bytes:
        """What has been learnt, without the open workflows."""

    @abstractmethod
    def restore(self, state: bytes) -> None:
        """Replaces what has been learnt by a `dump` of the same kind and version.

        Raises:
            StateRefused: the state does not fit; the predictor is as before.
        """

    def save(self, path: Path) -> None:
        """Writes what has been learnt to `path`, whole or not at all.

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


PREDICTORS: Registry[Predictor] = Registry("predictor.model")


@PREDICTORS.register("mixture")
def _mixture(config: PredictorConfig) -> Predictor:
    return _of_experts(config, [name.strip() for name in config.experts.split(",")])


def _alone(name: str) -> None:
    @PREDICTORS.register(name)
    def make(config: PredictorConfig) -> Predictor:
        return _of_experts(config, [name])


def _of_experts(config: PredictorConfig, names: Sequence[str]) -> Predictor:
    from pbkv_cluster.predictor_service.predictor.expert_predictor import ExpertPredictor

    return ExpertPredictor(config, names)


for _name in EXPERTS.names():
    _alone(_name)
