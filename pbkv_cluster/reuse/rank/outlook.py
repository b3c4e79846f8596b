"""The outlook on all active workflows: which of their segments they use again, and when.

The outlook on a workflow changes when it begins or ends a step and when a forecast arrives; in between only time passes. The
models of how workflows behave are learnt elsewhere (`AccessModels`); pauses and durations of steps are measured here.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from itertools import accumulate, chain
from typing import TypeVar

import numpy as np

from pbkv_cluster.core.workflow.tool_call import ToolCall
from pbkv_cluster.reuse.model.access_models import AccessModels
from pbkv_cluster.reuse.model.hazard import Floats
from pbkv_cluster.reuse.model.next_event import END
from pbkv_cluster.reuse.rank.forecast_blend import Trust
from pbkv_cluster.reuse.rank.timing import HORIZONS, Phase, Timing
from pbkv_cluster.reuse.rank.tool_timing import PauseTools
from pbkv_cluster.reuse.rank.workflow_outlook import ActiveWorkflow, WorkflowOutlook, predict_uses
from pbkv_cluster.reuse.record.segment import Segment

WorkflowT = TypeVar("WorkflowT", bound=ActiveWorkflow)

_SHARE_MIN = 0.02  # weight of forecasts below which a new one is ignored
_STARTS = 60  # latest starts of workflows, for their rate
_ONE = np.array(1.0)  # an array without axes is the quickest operand of numpy
_CERTAIN, _NEVER = range(2)  # first rows of each table of `unused`: a use at once, and no use at all
_FIRST_ROWS = np.array([np.zeros(len(HORIZONS)), np.ones(len(HORIZONS))])


class Outlook:
    """All active workflows, by id."""

    def __init__(self) -> None:
        self.models = AccessModels()
        self.timing = Timing()
        self.trust = Trust()
        self.workflows: dict[str, WorkflowOutlook] = {}
        self.workflow_count = 0  # workflows that have begun so far
        self.due: list[str] = []  # when the latest step began: ids of workflows whose `unused` time alone had put out of date
        self._deadlines: list[tuple[float, int, WorkflowOutlook]] = []  # heap, see `_find_due`
        self._updates = 0  # of any workflow's `unused`
        self._forecast_matters = False  # the latest answer of `forecast_matters`
        self._starts: deque[float] = deque(maxlen=_STARTS)

    # --- events ---

    def step_began(self, workflow: ActiveWorkflow, agent: str, now: float, number: int = -1, parent: int | None = None) -> None:
        """A step was admitted, perhaps again.

        Args:
            workflow: whose step it is.
            agent: that it calls.
            now: seconds.
            number: of the step, as the gateway counts them; below 0: unknown.
            parent: number of the step that it follows; None: the latest.
        """
        outlook = self.workflows.get(workflow.id)
        if outlook is None:
            outlook = self.workflows[workflow.id] = WorkflowOutlook(workflow)
            self.note_start(now)
        resumed = number in outlook.begun  # after a preemption: neither an event nor a pause has come between
        if not resumed:
            if outlook.number is not None:
                self._score(outlook, agent)
                self._add_pause(outlook, now, number, parent)
            outlook.agent, outlook.number, outlook.began_at = agent, number, now
            if number >= 0:
                outlook.begun.add(number)
        outlook.running += 1
        outlook.since = outlook.began_at
        outlook.queued.pop(number, None)
        outlook.step_changed()
        self._find_due(now)

    def tool_call(self, workflow: ActiveWorkflow, call: ToolCall, started: bool, now: float) -> None:
        """A workflow has begun to wait for a tool, or no longer does."""
        outlook = self.workflows.get(workflow.id)
        if outlook is None:
            return
        if started:
            outlook.tools = outlook.tools or PauseTools()
            outlook.tools.began(call, now)
        elif outlook.tools is not None and (ended := outlook.tools.ended(call, now)) is not None:
            self.timing.tools.add(*ended)
        outlook.unused_at = -1.0

    def waited(self, workflow: ActiveWorkflow, now: float) -> float:
        """Seconds for which a workflow has waited for the oldest of its open tool calls; 0 if it waits for none."""
        outlook = self.workflows.get(workflow.id)
        wait = outlook.tools.wait(now) if outlook is not None and outlook.tools is not None else None
        return max((elapsed for _, elapsed in wait.calls), default=0.0) if wait is not None else 0.0

    def step_queued(self, workflow: ActiveWorkflow, number: int, segments: Iterable[Segment]) -> None:
        """A step waits for admission whose prompt goes along some segments; none: it was withdrawn."""
        outlook = self.workflows.get(workflow.id)
        if outlook is not None:
            outlook.queued.pop(number, None)
            if waiting := frozenset(segments):
                outlook.queued[number] = waiting

    def step_ended(self, workflow: ActiveWorkflow, now: float) -> None:
        """A step has ended, or was preempted."""
        outlook = self.workflows.get(workflow.id)
        if outlook is None:
            return
        outlook.running = max(0, outlook.running - 1)
        if not outlook.running:
            outlook.since = now
        outlook.step_changed()

    def workflow_ended(self, workflow: ActiveWorkflow) -> None:
        """A workflow has ended."""
        outlook = self.workflows.pop(workflow.id, None)
        if outlook is not None:
            self._score(outlook, END[0])
            self._add_run(outlook)

    def note_start(self, now: float) -> None:
        """Counts a workflow that has begun."""
        self._starts.append(now)
        self.workflow_count += 1

    def add_user(self, workflow: ActiveWorkflow) -> None:
        """Tells that a shadow of the cache has the workflow as well."""
        outlook = self.workflows.get(workflow.id)
        if outlook is not None and workflow not in outlook.users:
            outlook.users.append(workflow)

    # --- answers ---

    def forecast_matters(self, workflow: ActiveWorkflow) -> bool:
        """Whether the forecast that has just arrived for a workflow changes the outlook on its segments."""
        outlook, self._forecast_matters = self.workflows.get(workflow.id), False
        if outlook is not None and self._is_news(outlook):
            if outlook.current:
                self._forecast_matters = self.predict([outlook])
            else:  # a step has begun or ended since, and nothing was ranked yet: the forecast only has to be scored later
                outlook.predict_events(self.models.of(outlook.workload), self.trust.share)
        return self._forecast_matters

    @property
    def forecast_mattered(self) -> bool:
        """The latest answer of `forecast_matters`, for a shadow of the cache, which is told of the same forecast later."""
        return self._forecast_matters

    def unused(self, users: Sequence[Mapping[WorkflowT, Segment]], now: float) -> Floats:
        """The probability that no workflow that has used a block does so again within each horizon.

        Args:
            users: the workflows that have used each block, each with its segment that holds the block.
            now: seconds.

        Returns:
            Shape (blocks, horizons).
        """
        asked = dict[str, list[tuple[int, Segment]]]()  # blocks of each workflow
        for block, segments in enumerate(users):
            for workflow, segment in segments.items():
                asked.setdefault(workflow.id, []).append((block, segment))
        # In one order, so that rounding does not depend on which blocks are asked about together.
        outlooks = [self.workflows[name] for name in sorted(asked) if name in self.workflows]
        for outlook in outlooks:
            if outlook.current and any(segment not in outlook.rows for _, segment in asked[outlook.id]):
                outlook.current = False
        self.refresh(outlooks, now)
        tables, start = [_FIRST_ROWS], len(_FIRST_ROWS)
        rows = [list[int]() for _ in users]
        for outlook in outlooks:
            for block, segment in asked[outlook.id]:
                rows[block].append(_CERTAIN if outlook.is_queued(segment) else start + outlook.rows[segment])
            assert outlook.unused is not None
            tables.append(outlook.unused)
            start += len(outlook.unused)
        return _products(np.concatenate(tables), rows)

    def refresh(self, outlooks: Sequence[WorkflowOutlook], now: float) -> None:
        """Brings `unused` of some workflows up to date, as far as it is out of date."""
        # Ranking a single block can ask for all active workflows, few of which have changed: no calls for the others.
        if changed := [
            each
            for each in outlooks
            if not each.current or (each.users[0].forecast is not each.forecast and self._is_news(each))
        ]:
            self.predict(changed)
        # `unused` holds ever longer, as a pause or a step that has lasted goes on.
        fresh = 0.5 * self.timing.unit  # seconds, at the least
        stale = [each for each in outlooks if each.unused_at < 0.0 or now - each.unused_at > fresh + 0.2 * (now - each.since)]
        if stale:
            phases = [
                Phase(
                    outlook.agent, outlook.running > 0, now - outlook.since, outlook.tools.wait(now) if outlook.tools else None
                )
                for outlook in stale
            ]
            for outlook, arrival in zip(stale, self.timing.arrival(phases), strict=True):
                outlook.arrival, outlook.unused, outlook.unused_at = arrival, None, now
        for outlook in outlooks:
            if outlook.unused is None:
                self._update(outlook)

    def predict(self, outlooks: Sequence[WorkflowOutlook]) -> bool:
        """Computes next events and uses of some workflows. Returns whether the probability of a use may have changed."""
        share = self.trust.share
        model_of = self.models.of
        changed = [outlook for outlook in outlooks if outlook.predict_events(model_of(outlook.workload), share)]
        predict_uses(changed)
        return bool(changed)

    def starts_per_second(self, now: float) -> float:
        """Rate at which workflows have begun lately."""
        if len(self._starts) < 2:
            return 0.0
        return len(self._starts) / max(now - self._starts[0], 1.0)

    # --- inside ---

    def _add_run(self, outlook: WorkflowOutlook) -> None:
        """Counts the duration of the latest step, now that it is known to have ended and not to be preempted."""
        if not outlook.running:
            self.timing.add_run(outlook.agent, outlook.since - outlook.began_at)

    def _add_pause(self, outlook: WorkflowOutlook, now: float, number: int, parent: int | None) -> None:
        """A new step begins: counts the step before it, and the pause between the two."""
        self._add_run(outlook)
        outlook.branches |= outlook.running > 0 or (parent is not None and parent != outlook.number)
        before = None if parent is None else outlook.record.find(parent)
        if before is not None and before.ended_at >= 0.0:
            self.timing.add_pause(before.agent, now - before.ended_at)
        elif parent is None and not outlook.running:
            self.timing.add_pause(outlook.agent, now - outlook.since)
        # Else the step before still runs, or ran elsewhere: when it ended is not known here.
        if outlook.tools is not None and not outlook.branches:
            wait = outlook.tools.wait(now)
            for call, elapsed in wait.calls if wait is not None else ():  # the client did not say that they ended
                self.timing.tools.add(call, elapsed)
            if wait is not None and not wait.calls:
                self.timing.tools.add_delay(wait.ended_s)
            outlook.tools = None

    def _score(self, outlook: WorkflowOutlook, agent: str) -> None:
        """The next event of a workflow is known: scores how well model and forecast had predicted it."""
        if outlook.events_current and outlook.predicted and outlook.agents:
            self.trust.score(agent, outlook.agents, outlook.predicted)

    def _is_news(self, outlook: WorkflowOutlook) -> bool:
        """Whether the latest forecast says something new of the next step, and has some weight; or of the workload."""
        forecast = outlook.users[0].forecast
        if forecast is outlook.forecast or forecast is None:
            return False
        if self.models.of(outlook.workload) is not outlook.model:
            return True
        if forecast.step != outlook.record.steps[-1].number or self.trust.share < _SHARE_MIN:
            return False
        before = outlook.forecast
        return before is None or before.step != forecast.step or before.steps[:1] != forecast.steps[:1]

    def _update(self, outlook: WorkflowOutlook) -> None:
        assert outlook.probability is not None
        assert outlook.arrival is not None
        outlook.unused = _ONE - outlook.probability.dot(outlook.arrival)
        self._updates += 1
        outlook.update = self._updates
        heapq.heappush(self._deadlines, (outlook.unused_at - 0.4 * outlook.since, outlook.update, outlook))

    def _find_due(self, now: float) -> None:
        # A workflow is due after twice the time in which it gets stale, see `refresh`: when now - unused_at exceeds
        # unit + 0.4 (now - since). The heap is ordered by the workflow's part of this, so that the order holds whatever becomes
        # of the unit.
        self.due = []
        while self._deadlines and self._deadlines[0][0] < 0.6 * now - self.timing.unit:
            _, update, outlook = heapq.heappop(self._deadlines)
            if outlook.update == update and outlook.unused_at >= 0.0 and self.workflows.get(outlook.id) is outlook:
                self.due.append(outlook.id)


def _products(table: Floats, rows: Sequence[Sequence[int]]) -> Floats:
    """For each list of rows, their product, in its order. Rows _CERTAIN and _NEVER must be the table's first."""
    flat = [each or (_NEVER,) for each in rows]
    factors: Floats = table.take(list(chain.from_iterable(flat)), axis=0)
    if len(factors) == len(flat):
        return factors
    starts = list(accumulate(map(len, flat[:-1]), initial=0))
    products: Floats = np.multiply.reduceat(factors, starts, axis=0)
    return products
