"""Compiles at start-up the code that would otherwise be compiled at its first call."""

from collections.abc import Callable
from typing import Any

from pbkv_cluster.core.config import PredictorConfig
from pbkv_cluster.core.workflow.events import EventKind, WorkflowEvent
from pbkv_cluster.predictor_service.predictor import PREDICTORS
from pbkv_cluster.predictor_service.training.jobs import Trainer


class _NoTrainer(Trainer):
    """Runs no jobs: they have processes of their own, which compile for themselves."""

    def submit(self, job: Any, done: Callable[[Any], None]) -> None:
        pass


def warm_up(config: PredictorConfig) -> None:
    """Has a predictor of the configured kind forecast and learn one workflow, and drops it.

    Compiled code is kept on disk for later processes. Without it this takes some ten seconds, with it one.

    Raises:
        InvalidArgument: there is no model of the configured name.
    """
    predictor = PREDICTORS.get(config.model)(config)
    predictor.trainer = _NoTrainer()
    kinds = [EventKind.WORKFLOW_STARTED, *(EventKind.STEP_STARTED, EventKind.STEP_FINISHED) * (config.horizon + 1)]
    for sequence, kind in enumerate([*kinds, EventKind.WORKFLOW_ENDED]):
        agent = "" if kind in (EventKind.WORKFLOW_STARTED, EventKind.WORKFLOW_ENDED) else "agent"
        step = max(0, sequence - 1) // 2
        predictor.observe(
            WorkflowEvent(kind, "workflow", sequence, 0.0, "workload", agent, step=step, words=(1, 2), pieces=(1,))
        )
        predictor.forecast(["workflow"], 0, 0.0)
        predictor.learn()
    PREDICTORS.get(config.model)(config).restore(predictor.dump())
