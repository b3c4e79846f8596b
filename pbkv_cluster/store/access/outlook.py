"""What is expected of every active workflow: which of its segments it uses again, and when.

A workflow's outlook changes when it begins or ends a step and when a forecast comes; in between, only time passes. What is
learnt of how workflows behave arrives from outside (`AccessModel`); what is measured here is pauses and durations of steps.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Iterable
from typing import TYPE_CHECKING

import numpy as np

from pbkv_cluster.store.access.expectation import Trust, blend, by_agent, of_forecast
from pbkv_cluster.store.access.features import facts
from pbkv_cluster.store.access.hazard import Floats, first_use
from pbkv_cluster.store.access.history import History, Segment
from pbkv_cluster.store.access.model import AccessModel
from pbkv_cluster.store.access.next_event import END
from pbkv_cluster.store.access.timing import HORIZONS, Timing

if TYPE_CHECKING:
    from pbkv_cluster.core.forecast import Forecast
    from pbkv_cluster.store.node import Owner

_HEEDED = 0.02  # share in what is expected below which a new forecast is not worth a new look
_AT_ONCE = np.zeros(len(HORIZONS))
_STARTS = 60  # latest beginnings of workflows, for their rate


class View:
    """One workflow."""

    __slots__ = (
        "agent",
        "agents",
        "arrival",
        "chances",
        "forecast",
        "foretold",
        "history",
        "known",
        "owners",
        "places",
        "queued",
        "running",
        "seen",
        "seen_at",
        "since",
        "unused",
    )

    def __init__(self, owner: Owner) -> None:
        self.owners = [owner]  # the workflow in the cache, and in shadows of it
        self.history: History = owner.history
        self.running = 0  # steps
        self.since = 0.0  # when the step that began last began, or, if none runs, when the last ended
        self.agent = ""
        self.known = False  # `chances` are those of the present state
        self.forecast: Forecast | None = None  # that they rest on
        self.agents: dict[str, float] = {}  # next agent by the model
        self.foretold: dict[str, float] = {}  # by the forecast
        self.queued: frozenset[Segment] = frozenset()  # that a step uses as soon as it is admitted
        self.places: dict[Segment, int] = {}  # rows of `chances` and `unused`
        self.chances: Floats | None = None  # of the next use in each bin
        self.arrival: Floats | None = None  # see `Timing.arrival`
        self.unused: Floats | None = None  # probability that each segment is not used again within each horizon
        self.seen_at = -1.0  # time that `arrival` and `unused` are of
        self.seen = 0  # number of that look

    @property
    def step(self) -> int:
        """Position of the latest step."""
        return len(self.history.steps) - 1


class Outlook:
    """All active workflows, by id."""

    def __init__(self) -> None:
        self.model = AccessModel()
        self.timing = Timing()
        self.trust = Trust()
        self.views: dict[str, View] = {}
        self.due: list[str] = []  # workflows whose outlook time alone has changed since it was asked for
        self._deadlines: list[tuple[float, int, View]] = []  # heap, see `_find_due`
        self._seen = 0  # how often a view was brought up to date
        self.arrivals = 0  # workflows that have come
        self._heeded = False  # the latest forecast
        self._starts: deque[float] = deque(maxlen=_STARTS)

    # --- what happens ---

    def began(self, owner: Owner, agent: str, now: float) -> None:
        """A step was admitted, perhaps again."""
        view = self.views.get(owner.id)
        if view is None:
            view = self.views[owner.id] = View(owner)
            self._starts.append(now)
            self.arrivals += 1
        else:
            if view.known and view.foretold and view.agents:
                self.trust.seen(agent, view.agents, view.foretold)
            if not view.running:
                self.timing.paused(view.agent, now - view.since)
        view.running += 1
        view.queued = frozenset()
        view.agent, view.since = agent, now
        view.known, view.seen_at = False, -1.0
        self._find_due(now)

    def queued(self, owner: Owner, segments: Iterable[Segment]) -> None:
        """A step waits that goes along some segments, or does so no longer."""
        view = self.views.get(owner.id)
        if view is not None:
            view.queued = frozenset(segments)

    def ended(self, owner: Owner, now: float) -> None:
        """A step has ended, or was preempted."""
        view = self.views.get(owner.id)
        if view is None:
            return
        view.running = max(0, view.running - 1)
        if not view.running:
            self.timing.ran(view.agent, now - view.since)
            view.since = now
        view.known, view.seen_at = False, -1.0

    def over(self, owner: Owner) -> None:
        """A workflow has ended."""
        view = self.views.pop(owner.id, None)
        if view is not None and view.known and view.foretold and view.agents:
            self.trust.seen(END[0], view.agents, view.foretold)

    # --- what is expected ---

    def beside(self, owner: Owner) -> None:
        """A shadow of the cache has the workflow, too."""
        view = self.views.get(owner.id)
        if view is not None and owner not in view.owners:
            view.owners.append(owner)

    def heeds(self, owner: Owner, asked_first: bool) -> bool:
        """Whether the forecast that has just come for a workflow is worth a new look.

        Args:
            owner: the workflow.
            asked_first: not for a shadow of the cache, for which the answer is that of the cache.
        """
        if asked_first:
            view = self.views.get(owner.id)
            self._heeded = view is not None and view.known and self._is_news(view)
        return self._heeded

    def unused(self, workflow: str, segment: Segment, now: float) -> Floats | None:
        """The probability that a workflow does not use a segment again within each horizon; None: it is not active."""
        view = self.view(workflow, now)
        if view is None:
            return None
        if segment in view.queued:
            return _AT_ONCE
        place = view.places.get(segment)
        if place is None:
            view.known = False
            view = self.view(workflow, now)
            assert view is not None
            place = view.places[segment]
        assert view.unused is not None
        unused: Floats = view.unused[place]
        return unused

    def view(self, workflow: str, now: float) -> View | None:
        """The outlook on one active workflow."""
        view = self.views.get(workflow)
        if view is None:
            return None
        if not view.known or (view.forecast is not view.owners[0].forecast and self._is_news(view)):
            self._look(view)
        if view.seen_at < 0.0 or now - view.seen_at > self._stale_after(view, now):
            view.arrival = self.timing.arrival(view.agent, view.running > 0, now - view.since)
            assert view.chances is not None
            view.unused = 1.0 - view.chances @ view.arrival
            view.seen_at = now
            self._remind(view)
        return view

    def starts_per_second(self, now: float) -> float:
        """Rate at which workflows have begun of late."""
        if len(self._starts) < 2:
            return 0.0
        return len(self._starts) / max(now - self._starts[0], 1.0)

    def _is_news(self, view: View) -> bool:
        """Whether the latest forecast says something of the next step that is worth a new look."""
        forecast = view.owners[0].forecast
        if forecast is None or forecast.step != view.history.steps[-1].number or self.trust.share < _HEEDED:
            return False
        before = view.forecast
        return before is None or before.step != forecast.step or before.steps[:1] != forecast.steps[:1]

    def _look(self, view: View) -> None:
        history, view.forecast = view.history, view.owners[0].forecast
        events = self.model.events.distribution(history.steps)
        view.agents, view.foretold = by_agent(events), {}
        if view.forecast is not None and view.forecast.step == history.steps[-1].number:  # else it is of another step
            view.foretold = of_forecast(view.forecast)
        if view.foretold:
            events = blend(events, view.agents, view.foretold, self.trust.share)
        view.places = {}
        for owner in view.owners:
            for node in owner.nodes:
                view.places.setdefault(node.owners[owner], len(view.places))
        view.chances = first_use(self.model.hazard.hazards(facts(history, list(view.places), events)))
        view.known, view.seen_at = True, -1.0

    def _find_due(self, now: float) -> None:
        # From twice the time in which it gets stale, see `_stale_after`: now - seen_at > unit + .4 (now - since). The heap is
        # ordered by what is of the workflow in this, so that the order holds whatever becomes of the unit.
        self.due = []
        while self._deadlines and self._deadlines[0][0] < 0.6 * now - self.timing.unit:
            _, seen, view = heapq.heappop(self._deadlines)
            if view.seen == seen and view.seen_at >= 0.0 and self.views.get(view.owners[0].id) is view:
                self.due.append(view.owners[0].id)

    def _remind(self, view: View) -> None:
        self._seen += 1
        view.seen = self._seen
        heapq.heappush(self._deadlines, (view.seen_at - 0.4 * view.since, view.seen, view))

    def _stale_after(self, view: View, now: float) -> float:
        """Seconds after which what is expected has changed with time: ever longer, as a pause that has lasted goes on."""
        return 0.5 * self.timing.unit + 0.2 * (now - view.since)
