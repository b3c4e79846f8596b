"""Trains a predictor on recorded workflows before a run."""

from collections.abc import Iterable

from pbkv_cluster.core.config import PredictorConfig
from pbkv_cluster.core.workflow.events import WorkflowEvent
from pbkv_cluster.predictor_service.predictor import PREDICTORS, Predictor
from pbkv_cluster.simulator.traces.step_traces import TraceWorkflow
from pbkv_cluster.simulator.workload.events import VOCAB, events_of
from pbkv_cluster.simulator.workload.prompts import PromptBuilder


def train_predictor(predictor: Predictor, workflows: Iterable[Iterable[WorkflowEvent]]) -> None:
    """Shows a predictor the events of workflows, one workflow after the other, and has it learn from each event."""
    for events in workflows:
        for event in events:
            predictor.observe(event)
            predictor.learn()
    predictor.train()


def trained_state(config: PredictorConfig, workflows: Iterable[TraceWorkflow]) -> bytes:
    """The state of a new predictor after it has been trained on some workflows, for `Predictor.restore`."""
    predictor, prompts = PREDICTORS.get(config.model)(config), PromptBuilder(VOCAB)
    train_predictor(
        predictor,
        (events_of(workflow, f"train-{number}:{workflow.id}", prompts) for number, workflow in enumerate(workflows)),
    )
    return predictor.dump()
