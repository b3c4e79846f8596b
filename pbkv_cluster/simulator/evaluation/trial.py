"""Predictors on trial: taught on some recorded workflows, scored on others."""

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from time import perf_counter
from typing import Any

from pbkv_cluster.core.config import PredictorConfig
from pbkv_cluster.core.events import WorkflowEvent
from pbkv_cluster.predictor_service.predictor import PREDICTORS, Predictor
from pbkv_cluster.simulator.evaluation.prediction import Scores, When, evaluate
from pbkv_cluster.simulator.traces.step_traces import TraceWorkflow
from pbkv_cluster.simulator.workload.events import VOCAB, events_of
from pbkv_cluster.simulator.workload.prompts import PromptBuilder

Events = list[WorkflowEvent]

MIXTURE = "mixture"


@dataclass(frozen=True, slots=True)
class Row:
    """How well one predictor forecast one workload, at one moment and so many steps ahead."""

    workload: str
    expert: str  # alone, or the mixture of all
    when: When
    k: int
    forecasts: int
    top1: float
    top3: float
    log_loss: float
    calibration_error: float
    forecasts_per_s: float  # with all that belongs to one: taking the event, and learning

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def recorded_events(workflows: Iterable[TraceWorkflow], prefix: str) -> list[Events]:
    """Events of workflows, with the pieces of their prompts.

    Args:
        workflows: the records.
        prefix: of the workflows' ids: those of another prefix are other workflows.
    """
    prompts = PromptBuilder(VOCAB)
    return [events_of(workflow, f"{prefix}-{number}:{workflow.id}", prompts) for number, workflow in enumerate(workflows)]


def contenders(config: PredictorConfig, experts: Sequence[str] = ()) -> dict[str, PredictorConfig]:
    """Predictors to compare by name: each expert alone, and, of several, their mixture.

    Args:
        config: names the experts, where `experts` does not, and holds all else. A model that is no mixture stands alone.
        experts: names.

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
    """The same workflows, by workload, in the order in which workloads come first."""
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
) -> list[Row]:
    """Scores a predictor, workload by workload.

    Args:
        name: of the predictor.
        predictor: as it has been taught.
        test: workflows to forecast.
        online: whether it goes on learning.
        on_workflow: called behind each.
    """
    rows = []
    for workload, workflows in by_workload(test).items():
        began = perf_counter()
        scores = evaluate(predictor, workflows, online, on_workflow)
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
    """The mean of a column over the workloads, each counting alike; not a number where there are none."""
    chosen = [getattr(row, column) for row in rows if (row.expert, row.when, row.k) == (expert, when, k)]
    return math.fsum(chosen) / len(chosen) if chosen else math.nan
