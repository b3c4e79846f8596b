"""What is expected of every active workflow: which of its segments it uses again, and when.

A workflow's outlook changes when it begins or ends a step and when a forecast comes; in between, only time passes. What is
learnt of how workflows behave arrives from outside (`AccessModel`); what is measured here is pauses and durations of steps.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from itertools import chain
from typing import TYPE_CHECKING

import numpy as np

from pbkv_cluster.reuse.model.access_model import AccessModel
from pbkv_cluster.reuse.model.hazard import Floats
from pbkv_cluster.reuse.model.next_event import END
from pbkv_cluster.reuse.rank.forecast_blend import Trust
from pbkv_cluster.reuse.rank.timing import HORIZONS, Timing
from pbkv_cluster.reuse.rank.workflow_outlook import WorkflowOutlook
from pbkv_cluster.reuse.record.segment import Segment

if TYPE_CHECKING:
    from pbkv_cluster.cache.tree.node import Owner

_HEEDED = 0.02  # share in what is expected below which a new forecast is not worth a new look
_STARTS = 60  # latest beginnings of workflows, for their rate


class Outlook:
    """All active workflows, by id."""

    def __init__(self) -> None:
        self.model = AccessModel()
        self.timing = Timing()
        self.trust = Trust()
        self.views: dict[str, WorkflowOutlook] = {}
        self.due: list[str] = []  # workflows whose outlook time alone has changed since it was asked for
        self._deadlines: list[tuple[float, int, WorkflowOutlook]] = []  # heap, see `_find_due`
        self._seen = 0  # how often a view was brought up to date
        self.arrivals = 0  # workflows that have come
        self._heeded = False  # the latest forecast
        self._starts: deque[float] = deque(maxlen=_STARTS)

    # --- what happens ---

    def began(self, owner: Owner, agent: str, now: float) -> None:
        """A step was admitted, perhaps again."""
        view = self.views.get(owner.id)
        if view is None:
            view = self.views[owner.id] = WorkflowOutlook(owner)
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
        """Whether the forecast that has just come for a workflow changes what is expected of its segments.

        Args:
            owner: the workflow.
            asked_first: not for a shadow of the cache, for which the answer is that of the cache.
        """
        if asked_first:
            view = self.views.get(owner.id)
            self._heeded = view is not None and view.known and self._is_news(view) and self._look(view)
        return self._heeded

    def unused(self, used_by: Sequence[Mapping[Owner, Segment]], now: float) -> Floats:
        """The probability that no workflow that has used a block does so again within each horizon; a row for each block.

        Args:
            used_by: who has used each block, with what it knows of it.
            now: seconds.
        """
        blocks = dict[str, tuple[list[int], list[Segment]]]()  # of each workflow
        for block, owners in enumerate(used_by):
            for owner, segment in owners.items():
                known = blocks.get(owner.id)
                if known is None:
                    blocks[owner.id] = [block], [segment]
                else:
                    known[0].append(block)
                    known[1].append(segment)
        rows, parts = list[list[int]](), list[Floats]()
        for workflow in sorted(blocks):  # in one order, so that rounding does not depend on which blocks are asked for together
            numbers, segments = blocks[workflow]
            own = self._unused_by(workflow, segments, now)
            if own is not None:
                rows.append(numbers)
                parts.append(own)
        return _product(len(used_by), rows, parts)

    def view(self, workflow: str, now: float) -> WorkflowOutlook | None:
        """The outlook on one active workflow."""
        view = self.views.get(workflow)
        if view is None:
            return None
        if not view.known or (view.forecast is not view.owners[0].forecast and self._is_news(view)):
            self._look(view)
        if view.seen_at < 0.0 or now - view.seen_at > self._stale_after(view, now):
            view.arrival, view.unused = self.timing.arrival(view.agent, view.running > 0, now - view.since), None
            view.seen_at = now
        if view.unused is None:
            assert view.chances is not None
            assert view.arrival is not None
            view.unused = 1.0 - view.chances @ view.arrival
            self._remind(view)
        return view

    def starts_per_second(self, now: float) -> float:
        """Rate at which workflows have begun of late."""
        if len(self._starts) < 2:
            return 0.0
        return len(self._starts) / max(now - self._starts[0], 1.0)

    def _is_news(self, view: WorkflowOutlook) -> bool:
        """Whether the latest forecast says something of the next step that is worth a new look."""
        forecast = view.owners[0].forecast
        if forecast is None or forecast.step != view.record.steps[-1].number or self.trust.share < _HEEDED:
            return False
        before = view.forecast
        return before is None or before.step != forecast.step or before.steps[:1] != forecast.steps[:1]

    def _unused_by(self, workflow: str, segments: Sequence[Segment], now: float) -> Floats | None:
        """The probability that a workflow does not use some of its segments again within each horizon; None: it has ended."""
        view = self.view(workflow, now)
        if view is None:
            return None
        if any(segment not in view.places for segment in segments):
            view.known = False
            self.view(workflow, now)
        assert view.unused is not None
        found: Floats = view.unused.take([view.places[segment] for segment in segments], axis=0)
        if view.queued:
            found[[segment in view.queued for segment in segments]] = 0.0  # at once
        return found

    def _look(self, view: WorkflowOutlook) -> bool:
        return view.look(self.model, self.trust.share)

    def _find_due(self, now: float) -> None:
        # From twice the time in which it gets stale, see `_stale_after`: now - seen_at > unit + .4 (now - since). The heap is
        # ordered by what is of the workflow in this, so that the order holds whatever becomes of the unit.
        self.due = []
        while self._deadlines and self._deadlines[0][0] < 0.6 * now - self.timing.unit:
            _, seen, view = heapq.heappop(self._deadlines)
            if view.seen == seen and view.seen_at >= 0.0 and self.views.get(view.owners[0].id) is view:
                self.due.append(view.owners[0].id)

    def _remind(self, view: WorkflowOutlook) -> None:
        self._seen += 1
        view.seen = self._seen
        heapq.heappush(self._deadlines, (view.seen_at - 0.4 * view.since, view.seen, view))

    def _stale_after(self, view: WorkflowOutlook, now: float) -> float:
        """Seconds after which what is expected has changed with time: ever longer, as a pause that has lasted goes on."""
        return 0.5 * self.timing.unit + 0.2 * (now - view.since)


def _product(number: int, rows: Sequence[list[int]], parts: Sequence[Floats]) -> Floats:
    """Multiplies parts of a table of ones with so many rows, given which rows each part is of."""
    if len(parts) == 1 and len(rows[0]) == number:
        return parts[0]
    found = np.ones((number, len(HORIZONS)))
    places = list(chain.from_iterable(rows))
    if parts and len(set(places)) == len(places):
        found[places] = np.concatenate(parts)
        return found
    for own, part in zip(rows, parts, strict=True):
        found[own] *= part
    return found
