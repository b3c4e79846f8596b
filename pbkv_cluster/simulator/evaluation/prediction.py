"""How well a predictor forecasts workflows."""

from collections.abc import Callable, Iterable, Sequence
from typing import Literal

import numpy as np

from pbkv_cluster.core.events import EventKind, WorkflowEvent
from pbkv_cluster.core.forecasts.forecast import Forecast
from pbkv_cluster.predictor_service.predictor.base import Predictor

END = ""
When = Literal["before", "after"]
"""A forecast is made before a step's output is known, or after."""

_BINS = 15  # of confidence, for the calibration error
_FLOOR = 1e-6  # no outcome is held less likely than this, for the log loss


class Score:
    """How well forecasts of one step were. Shares and means are not numbers as long as there are none."""

    def __init__(self) -> None:
        self._confidences: list[float] = []  # of the likeliest outcome
        self._right: list[bool] = []  # it came
        self._among_three: list[bool] = []  # what came was one of the three likeliest
        self._losses: list[float] = []  # -ln of the probability of what came

    def add(self, chances: dict[str, float], came: str) -> None:
        """Counts one forecast.

        Args:
            chances: of each outcome; those without any are no part of the forecast, which may be empty.
            came: the outcome.
        """
        best = sorted((name for name, chance in chances.items() if chance > 0), key=chances.__getitem__, reverse=True)[:3]
        self._confidences.append(chances[best[0]] if best else 0.0)
        self._right.append(best[:1] == [came])
        self._among_three.append(came in best)
        self._losses.append(-float(np.log(max(chances.get(came, 0.0), _FLOOR))))

    def __len__(self) -> int:
        return len(self._right)

    def __iadd__(self, other: "Score") -> "Score":
        """Adds the forecasts of another."""
        self._confidences += other._confidences
        self._right += other._right
        self._among_three += other._among_three
        self._losses += other._losses
        return self

    @property
    def top1(self) -> float:
        """Share of the forecasts whose likeliest outcome came."""
        return _mean(self._right)

    @property
    def top3(self) -> float:
        """Share of those that had what came among the three likeliest."""
        return _mean(self._among_three)

    @property
    def log_loss(self) -> float:
        """Mean, in nats."""
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
"""By moment, and by how many steps ahead."""


def teach(predictor: Predictor, workflows: Iterable[Iterable[WorkflowEvent]]) -> None:
    """Has a predictor see workflows, one after the other."""
    for events in workflows:
        for event in events:
            predictor.observe(event)
            predictor.learn()
    predictor.train()


def evaluate(
    predictor: Predictor,
    workflows: Iterable[Sequence[WorkflowEvent]],
    online: bool,
    on_workflow: Callable[[], None] = lambda: None,
) -> Scores:
    """Forecasts workflows, one after the other, behind each beginning and each end of a step.

    The end is an outcome like an agent. Behind the end comes the end: a workflow that is over in two steps is so in three, too.

    Args:
        predictor: as it has been taught.
        workflows: their events.
        online: whether it goes on learning.
        on_workflow: called behind each.
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
                came = agents[at] if at < len(agents) else END
                scores.setdefault((when, ahead), Score()).add(chances_of(forecast, ahead), came)
        predictor.learn()


def chances_of(forecast: Forecast, ahead: int) -> dict[str, float]:
    """Probability of each agent that a forecast names at one of its steps, from 1, and of the end."""
    step = forecast.steps[ahead - 1]
    return {END: 1.0 - step.survival, **{agent: chance * step.survival for agent, chance in step.agents.items()}}


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else float("nan")
