"""What predictors are told of recorded workflows, and how well they forecast them."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np
import numpy.typing as npt

from pbkv_cluster.core.events import EventKind, WorkflowEvent
from pbkv_cluster.core.forecast import Forecast
from pbkv_cluster.core.pieces import prompt_pieces
from pbkv_cluster.predictor_service.base import Predictor
from pbkv_cluster.simulator.prompts import PromptBuilder
from pbkv_cluster.simulator.traces import TraceWorkflow

END = ""
When = Literal["before", "after"]
"""A forecast is made before a step's output is known, or after."""

_BINS = 15  # of confidence, for the calibration error
_FLOOR = 1e-6  # no outcome is held less likely than this, for the log loss


def events_of(workflow: TraceWorkflow, name: str, prompts: PromptBuilder | None = None) -> list[WorkflowEvent]:
    """A recorded workflow's events, as a gateway would report them; one second passes between two.

    Args:
        workflow: the record.
        name: id of the workflow.
        prompts: rebuilds prompts, for their pieces; without it events have none.
    """
    found: list[WorkflowEvent] = []

    def add(kind: EventKind, **fields: object) -> None:
        event = WorkflowEvent(kind, name, len(found), float(len(found)), workflow.workload)
        found.append(replace(event, **fields))  # type: ignore[arg-type]

    add(EventKind.WORKFLOW_STARTED)
    for position, step in enumerate(workflow.steps):
        same = {"agent": step.agent, "call_site": step.call_site, "step": position, "prompt_tokens": step.prompt_tokens}
        pieces = prompt_pieces(prompts.prompt(step)) if prompts is not None else ()
        add(EventKind.STEP_STARTED, **same, pieces=pieces, words=step.task_words)
        add(EventKind.STEP_FINISHED, **same, output_tokens=step.output_tokens, words=step.words)
    add(EventKind.WORKFLOW_ENDED)
    return found


def without_text(events: Iterable[WorkflowEvent]) -> Iterator[WorkflowEvent]:
    """The same events, without anything of what was said."""
    return (replace(event, words=(), hidden=b"") for event in events)


def teach(predictor: Predictor, workflows: Iterable[Sequence[WorkflowEvent]]) -> None:
    """Has a predictor see workflows, one after the other."""
    for events in workflows:
        for event in events:
            predictor.observe(event)
            predictor.learn()
    predictor.train()


@dataclass(slots=True)
class Score:
    """How well forecasts of one step were."""

    confidences: list[float] = field(default_factory=list)  # of the likeliest outcome
    right: list[bool] = field(default_factory=list)  # it came
    among_three: list[bool] = field(default_factory=list)  # what came was one of the three likeliest
    losses: list[float] = field(default_factory=list)  # -ln of the probability of what came

    def add(self, chances: dict[str, float], came: str) -> None:
        """One forecast, and what came."""
        best = sorted(chances, key=chances.__getitem__, reverse=True)[:3]
        self.confidences.append(chances[best[0]])
        self.right.append(best[0] == came)
        self.among_three.append(came in best)
        self.losses.append(-float(np.log(max(chances.get(came, 0.0), _FLOOR))))

    @property
    def top1(self) -> float:
        return float(np.mean(self.right))

    @property
    def top3(self) -> float:
        return float(np.mean(self.among_three))

    @property
    def log_loss(self) -> float:
        """Mean, in nats."""
        return float(np.mean(self.losses))

    @property
    def calibration_error(self) -> float:
        """Expected calibration error of the likeliest outcome, over 15 bins of equal width (Guo et al., ICML 2017)."""
        confidences: npt.NDArray[np.float64] = np.array(self.confidences)
        right = np.array(self.right, dtype=np.float64)
        bins = np.minimum((confidences * _BINS).astype(int), _BINS - 1)
        gaps = np.bincount(bins, confidences - right, minlength=_BINS)
        return float(np.abs(gaps).sum() / len(right))


Scores = dict[tuple[When, int], Score]
"""By moment, and by how many steps ahead."""


def evaluate(predictor: Predictor, workflows: Iterable[Sequence[WorkflowEvent]], online: bool) -> Scores:
    """Forecasts workflows, one after the other, behind each beginning and each end of a step.

    The end is an outcome like an agent. Behind the end comes the end: a workflow that is over in two steps is so in three, too.

    Args:
        predictor: as it has been taught; it goes on with its present horizon K.
        workflows: their events.
        online: whether it goes on learning.
    """
    scores: Scores = {}
    predictor.learning = online
    for events in workflows:
        agents = [event.agent for event in events if event.kind is EventKind.STEP_STARTED]
        begun = 0
        for event in events:
            predictor.observe(event)
            begun += event.kind is EventKind.STEP_STARTED
            if event.kind in (EventKind.STEP_STARTED, EventKind.STEP_FINISHED):
                when: When = "before" if event.kind is EventKind.STEP_STARTED else "after"
                (forecast,) = predictor.forecast([event.workflow], event.sequence, event.time)
                for ahead in range(1, len(forecast.steps) + 1):
                    at = begun - 1 + ahead
                    came = agents[at] if at < len(agents) else END
                    scores.setdefault((when, ahead), Score()).add(chances_of(forecast, ahead), came)
            predictor.learn()
    predictor.learning = True
    return scores


def chances_of(forecast: Forecast, ahead: int) -> dict[str, float]:
    """Probability of each agent that a forecast names at one of its steps, from 1, and of the end."""
    step = forecast.steps[ahead - 1]
    return {END: 1.0 - step.survival, **{agent: chance * step.survival for agent, chance in step.agents.items()}}
