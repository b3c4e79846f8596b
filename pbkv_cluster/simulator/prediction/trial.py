"""Compares predictors: each is trained on some recorded workflows and scored on others."""

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from time import perf_counter
from typing import Any

from pbkv_cluster.core.config import PredictorConfig
from pbkv_cluster.core.workflow.events import WorkflowEvent
from pbkv_cluster.predictor_service.predictor import PREDICTORS, Predictor
from pbkv_cluster.simulator.prediction.scores import Scores, When, evaluate
from pbkv_cluster.simulator.traces.step_traces import TraceWorkflow
from pbkv_cluster.simulator.workload.events import VOCAB, events_of
from pbkv_cluster.simulator.workload.prompts import PromptBuilder

Events = list[WorkflowEvent]

MIXTURE = "mixture"


@dataclass(frozen=True, slots=True)
class Row:
    """Scores of one predictor on one workload, for forecasts made at one moment of a step and `k` steps ahead."""

    workload: str
    expert: str  # one expert alone, or the mixture of all
    when: When
    k: int
    forecasts: int
    top1: float
    top3: float
    log_loss: float
    calibration_error: float
    forecasts_per_s: float  # including the time to take the event and to learn from it

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def recorded_events(workflows: Iterable[TraceWorkflow], prefix: str) -> list[Events]:
    """Events of recorded workflows, with the pieces of their prompts.

    Args:
        workflows: the recorded workflows.
        prefix: of their ids in the events, so that the same record under another prefix is another workflow.
    """
    prompts = PromptBuilder(VOCAB)
    return [events_of(workflow, f"{prefix}-{number}:{workflow.id}", prompts) for number, workflow in enumerate(workflows)]


def contenders(config: PredictorConfig, experts: Sequence[str] = ()) -> dict[str, PredictorConfig]:
    """Configurations to compare, by name: each expert alone and, if there are several, their mixture.

    Args:
        config: all other settings, and the experts if `experts` is empty. A model other than the mixture is compared alone.
        experts: names of experts.

    Raises:
        InvalidArgument: there is no expert or model of such a name.
    """
    if not experts and config.model != MIXTURE:
        found = {config.model: config}
    else:
        names = list(dict.fromkeys(experts or (name.strip() for name in config.experts.split(","))))
        found = {name: config.model_copy(update={"model": MIXTURE, "experts": name}) for name in names}
        if len(names) > 1:
            found[MIXTURE] = config.model_copy(update={"model": MIXTURE, "experts": ",".join(names)})
    for each in found.values():
        PREDICTORS.get(each.model)(each)
    return found


def by_workload(workflows: Iterable[Events]) -> dict[str, list[Events]]:
    """The workflows by workload. Workloads are in the order of their first workflow."""
    found: defaultdict[str, list[Events]] = defaultdict(list)
    for events in workflows:
        found[events[0].workload].append(events)
    return dict(found)


def rows_of(
    name: str,
    predictor: Predictor,
    test: Iterable[Events],
    online: bool,
    on_workflow: Callable[[], None] = lambda: None,
    leave_out_silent: bool = False,
) -> list[Row]:
    """Scores a predictor, one workload after the other.

    Args:
        name: of the predictor, for the rows.
        predictor: trained or new.
        test: workflows to forecast.
        online: whether the predictor learns from these workflows too.
        on_workflow: called after each workflow.
        leave_out_silent: make no rows of workloads in which it never made a forecast.
    """
    rows = []
    for workload, workflows in by_workload(test).items():
        began = perf_counter()
        scores = evaluate(predictor, workflows, online, on_workflow)
        if not (leave_out_silent and all(score.silent for score in scores.values())):
            rows += _rows(workload, name, scores, perf_counter() - began)
    return rows


def _rows(workload: str, name: str, scores: Scores, seconds: float) -> list[Row]:
    forecasts = sum(len(score) for (_, ahead), score in scores.items() if ahead == 1)
    return [
        Row(
            workload=workload,
            expert=name,
            when=when,
            k=ahead,
            forecasts=len(score),
            top1=score.top1,
            top3=score.top3,
            log_loss=score.log_loss,
            calibration_error=score.calibration_error,
            forecasts_per_s=forecasts / seconds,
        )
        for (when, ahead), score in sorted(scores.items(), key=lambda entry: (entry[0][0] == "after", entry[0][1]))
    ]


def mean(rows: Iterable[Row], column: str, expert: str, when: When, k: int) -> float:
    """The mean of a column over the workloads, each with the same weight; NaN if no row matches."""
    chosen = [getattr(row, column) for row in rows if (row.expert, row.when, row.k) == (expert, when, k)]
    return math.fsum(chosen) / len(chosen) if chosen else math.nan
