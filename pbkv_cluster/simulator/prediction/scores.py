"""Scores a predictor's forecasts of recorded workflows."""

from collections.abc import Callable, Iterable, Sequence
from typing import Literal

import numpy as np

from pbkv_cluster.core.forecasts.forecast import Forecast
from pbkv_cluster.core.workflow.events import EventKind, WorkflowEvent
from pbkv_cluster.predictor_service.predictor import Predictor

END = ""
"""The outcome that the workflow has ended, beside the names of agents."""

When = Literal["before", "after"]
"""Whether a forecast is made before a step's output is known, or after."""

_BINS = 15  # of confidence, for the calibration error
_FLOOR = 1e-6  # least probability of an outcome in the log loss


class Score:
    """Scores of forecasts of one step. Shares and means of no forecasts are NaN."""

    def __init__(self) -> None:
        self._confidences: list[float] = []  # probability of the likeliest outcome
        self._right: list[bool] = []  # the likeliest outcome was the actual one
        self._among_three: list[bool] = []  # the actual outcome was among the three likeliest
        self._losses: list[float] = []  # -ln of the probability of the actual outcome

    def add(self, probabilities: dict[str, float], actual: str) -> None:
        """Counts one forecast.

        Args:
            probabilities: of the outcomes; those of probability 0 are ignored, and there may be none.
            actual: the outcome.
        """
        likely = (name for name, probability in probabilities.items() if probability > 0)
        best = sorted(likely, key=probabilities.__getitem__, reverse=True)[:3]
        self._confidences.append(probabilities[best[0]] if best else 0.0)
        self._right.append(best[:1] == [actual])
        self._among_three.append(actual in best)
        self._losses.append(-float(np.log(max(probabilities.get(actual, 0.0), _FLOOR))))

    @property
    def silent(self) -> bool:
        """Whether no forecast gave any outcome a probability: the predictor has abstained each time."""
        return not any(self._confidences)

    def __len__(self) -> int:
        return len(self._right)

    def __iadd__(self, other: "Score") -> "Score":
        """Adds the forecasts of another score."""
        self._confidences += other._confidences
        self._right += other._right
        self._among_three += other._among_three
        self._losses += other._losses
        return self

    @property
    def top1(self) -> float:
        """Share of the forecasts whose likeliest outcome was the actual one."""
        return _mean(self._right)

    @property
    def top3(self) -> float:
        """Share of the forecasts with the actual outcome among the three likeliest."""
        return _mean(self._among_three)

    @property
    def log_loss(self) -> float:
        """Mean log loss, in nats."""
        return _mean(self._losses)

    @property
    def calibration_error(self) -> float:
        """Expected calibration error of the likeliest outcome, over 15 bins of equal width (Guo et al., ICML 2017)."""
        if not self._right:
            return float("nan")
        confidences, right = np.array(self._confidences), np.array(self._right, dtype=np.float64)
        bins = np.minimum((confidences * _BINS).astype(int), _BINS - 1)
        gaps = np.bincount(bins, confidences - right, minlength=_BINS)
        return float(np.abs(gaps).sum() / len(right))


Scores = dict[tuple[When, int], Score]
"""Scores by when a forecast was made, and by the number of steps ahead."""


def evaluate(
    predictor: Predictor,
    workflows: Iterable[Sequence[WorkflowEvent]],
    online: bool,
    on_workflow: Callable[[], None] = lambda: None,
) -> Scores:
    """Forecasts workflows, one after the other, each time when a step has begun and when it has ended.

    The end of the workflow is an outcome like an agent, and is followed by itself: a workflow that has ended in two steps has
    also ended in three.

    Args:
        predictor: trained or new.
        workflows: their events.
        online: whether the predictor learns from these workflows too.
        on_workflow: called after each workflow.
    """
    scores: Scores = {}
    learning, predictor.learning = predictor.learning, online
    try:
        for events in workflows:
            _forecast(predictor, events, scores)
            on_workflow()
    finally:
        predictor.learning = learning
    return scores


def _forecast(predictor: Predictor, events: Sequence[WorkflowEvent], scores: Scores) -> None:
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
                actual = agents[at] if at < len(agents) else END
                scores.setdefault((when, ahead), Score()).add(outcome_probabilities(forecast, ahead), actual)
        predictor.learn()


def outcome_probabilities(forecast: Forecast, ahead: int) -> dict[str, float]:
    """Probabilities, `ahead` steps ahead (from 1), of each agent that the forecast names and of the workflow's end."""
    step = forecast.steps[ahead - 1]
    agents = {agent: probability * step.survival for agent, probability in step.agents.items()}
    return {END: 1.0 - step.survival, **agents}


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else float("nan")
