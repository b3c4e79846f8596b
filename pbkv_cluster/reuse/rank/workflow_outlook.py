"""The outlook on one active workflow: when it uses each of its segments again."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Protocol

from pbkv_cluster.reuse.model.features import UNKNOWN
from pbkv_cluster.reuse.model.hazard import Floats
from pbkv_cluster.reuse.rank.forecast_blend import Agents, of_forecast
from pbkv_cluster.reuse.rank.next_use import NextEvents, NextUse, Question, next_uses
from pbkv_cluster.reuse.rank.tool_timing import PauseTools
from pbkv_cluster.reuse.record.segment import Segment
from pbkv_cluster.reuse.record.workflow_record import WorkflowRecord

if TYPE_CHECKING:
    from pbkv_cluster.core.forecasts.forecast import Forecast
    from pbkv_cluster.reuse.model.access_model import AccessModel


class ActiveWorkflow(Protocol):
    """A workflow as some cache sees it."""

    id: str
    record: WorkflowRecord
    forecast: Forecast | None  # the latest
    workload: str  # see `Forecast.workload`

    def segments(self) -> Iterable[Segment]:
        """The segments that the cache may ask about, in an order that does not depend on memory addresses."""


class WorkflowOutlook:
    """Next-use probabilities of one workflow. A step that begins or ends makes them stale, and so does time."""

    __slots__ = (
        "agent",
        "agents",
        "arrival",
        "began_at",
        "begun",
        "branches",
        "current",
        "events_current",
        "forecast",
        "id",
        "model",
        "next_events",
        "next_use",
        "number",
        "predicted",
        "probability",
        "queued",
        "record",
        "rows",
        "running",
        "since",
        "tools",
        "top",
        "unused",
        "unused_at",
        "update",
        "users",
    )

    def __init__(self, workflow: ActiveWorkflow) -> None:
        self.id = workflow.id
        self.record = workflow.record
        self.model: AccessModel | None = None  # that `probability` rests on
        self.users = [workflow]  # the workflow in the cache, and in shadows of the cache
        self.running = 0  # steps
        self.began_at = 0.0  # when the latest step began
        self.begun: set[int] = set()  # numbers of the steps that have begun
        self.since = 0.0  # the same or, if no step runs, when the last one ended
        self.branches = False  # steps have run at the same time, or followed another than the latest
        self.agent = ""  # of the latest step
        self.number: int | None = None  # of the latest step, as the gateway counts; None: there was none
        self.tools: PauseTools | None = None  # that it waits for; None: it has announced nothing
        self.queued: dict[int, frozenset[Segment]] = {}  # that each waiting step uses as soon as it is admitted
        self.current = False  # `probability` is that of the present state
        self.events_current = False  # `agents` and `predicted` are those of the present state
        self.forecast: Forecast | None = None  # that `probability` rests on
        self.agents: Agents = {}  # next agent by the model
        self.predicted: Agents = {}  # next agent by the forecast
        self.next_events: NextEvents | None = None  # may no longer be valid
        self.next_use: NextUse | None = None  # may no longer be valid
        self.rows: dict[Segment, int] = {}  # rows of `probability` and `unused`
        self.top = UNKNOWN  # the likeliest next events, that `probability` rests on
        self.probability: Floats | None = None  # of the next use in each bin, see `NextUse.probability`
        self.arrival: Floats | None = None  # of the step in each bin by each horizon, see `Timing.arrival`
        self.unused: Floats | None = None  # probability that each segment is not used again within each horizon
        self.unused_at = -1.0  # time of `arrival` and `unused`; below 0: neither is of the present state
        self.update = 0  # number of the latest change of `unused`

    @property
    def step(self) -> int:
        """Position of the latest step."""
        return len(self.record.steps) - 1

    def is_queued(self, segment: Segment) -> bool:
        """Whether a waiting step uses a segment."""
        return bool(self.queued) and any(segment in segments for segments in self.queued.values())

    @property
    def workload(self) -> str:
        """See `Forecast.workload`."""
        return self.users[0].workload

    def predict_events(self, model: AccessModel, share: float) -> bool:
        """Predicts the next event after the present step from the latest forecast. Returns whether `probability` must follow.

        Args:
            model: what has been learnt of its workload.
            share: weight of the forecast.
        """
        self.forecast = self.users[0].forecast
        kept = self.current and self.next_use is not None and self.next_use.valid and self.model is model
        if self.model is not model:
            self.model, self.next_events = model, None
        if not kept:
            self.rows, self.next_use = self._rows(), None
        if self.next_events is None or not self.next_events.valid:
            self.next_events = NextEvents(model, self.record)
        self.agents, self.predicted = self.next_events.agents, {}
        if self.forecast is not None and self.forecast.step == self.record.steps[-1].number:  # else it is of another step
            self.predicted = of_forecast(self.forecast)
        self.events_current = True
        before, self.top = self.top, self.next_events.top(self.predicted, share)
        return not kept or self.top != before

    def step_changed(self) -> None:
        """A step has begun or ended: nothing is of the present state any more."""
        self.current, self.events_current, self.unused_at = False, False, -1.0

    def _rows(self) -> dict[Segment, int]:
        found: dict[Segment, int] = {}
        for user in self.users:
            for segment in user.segments():
                found.setdefault(segment, len(found))
        return found


def predict_uses(outlooks: Sequence[WorkflowOutlook]) -> None:
    """Computes `probability` of some workflows after `predict_events`."""
    new: dict[AccessModel, list[WorkflowOutlook]] = {}
    for outlook in outlooks:
        outlook.current, outlook.unused = True, None
        if outlook.next_use is None:
            assert outlook.model is not None
            new.setdefault(outlook.model, []).append(outlook)
        else:
            outlook.probability = outlook.next_use.probability(outlook.top)
    for model, group in new.items():
        questions = [Question(outlook.record, list(outlook.rows), outlook.top) for outlook in group]
        for outlook, (next_use, probability) in zip(group, next_uses(model, questions), strict=True):
            outlook.next_use, outlook.probability = next_use, probability
