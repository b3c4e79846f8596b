"""Trains a predictor on recorded workflows before a run."""

from collections.abc import Iterable
from typing import NamedTuple

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


class Trained(NamedTuple):
    """What a predictor has learnt from some workflows."""

    state: bytes  # for `Predictor.restore`
    workloads: dict[str, str]  # the workload of each workflow, by their ids


def trained_state(config: PredictorConfig, workflows: Iterable[TraceWorkflow]) -> Trained:
    """What a new predictor has learnt after it was trained on some workflows."""
    predictor, prompts = PREDICTORS.get(config.model)(config), PromptBuilder(VOCAB)
    workloads = {}
    for number, workflow in enumerate(workflows):
        name = f"train-{number}:{workflow.id}"
        *events, end = events_of(workflow, name, prompts)
        for event in events:
            predictor.observe(event)
            predictor.learn()
        workloads[workflow.id] = predictor.forecast([name], 0, 0.0)[0].workload
        predictor.observe(end)
        predictor.learn()
    predictor.train()
    return Trained(predictor.dump(), workloads)
