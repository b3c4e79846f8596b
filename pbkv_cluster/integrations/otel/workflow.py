"""Puts the spans of one workflow into order of time and turns them into events."""

import heapq
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from pbkv_cluster.core.workflow.events import EventKind, WorkflowEvent
from pbkv_cluster.integrations.otel.ancestry import Ancestry
from pbkv_cluster.integrations.otel.reading.dialects import Role
from pbkv_cluster.integrations.otel.reading.spans import Span
from pbkv_cluster.integrations.otel.reasons import Notices, Reason

UNKNOWN_AGENT = "unknown"  # of a model call that names no agent, in an application that names no service

_NS = 1_000_000_000
# Order of edges at the same time: spans end before others start, except that a span of no length starts before it ends.
_ENDS, _STARTS, _ENDS_AT_ONCE, _WORKFLOW_ENDS = range(4)
_ALL_NS = 1 << 64


class _Edge(NamedTuple):
    """The start or the end of a span, or of the workflow with it. Edges sort by time."""

    time_ns: int
    rank: int
    trace: str
    id: str

    @property
    def key(self) -> tuple[str, str]:
        return self.trace, self.id


class _Waiting(NamedTuple):
    span: Span
    arrived_at: float


class Workflow:
    """Orders spans by time and numbers the events from 0.

    A span waits for `reorder_s` after it has arrived; then its events are emitted, after those of everything earlier. A model
    call whose agent is named by an enclosing span, which ends later, delays whatever follows it, for at most `parent_wait_s`.
    """

    def __init__(
        self, name: str, ancestry: Ancestry, notices: Notices, reorder_s: float, parent_wait_s: float, after_ns: int = 0
    ) -> None:
        """Args:
        name: its id.
        ancestry: of all known spans.
        notices: told of steps whose agent is unknown.
        reorder_s: seconds that a span waits for earlier ones.
        parent_wait_s: seconds that a model call waits for the span that names its agent.
        after_ns: end of an earlier workflow of this name, in ns since 1970; 0: there was none.
        """
        self.name = name
        self.last_span_at = 0.0
        self.open = False  # its start was emitted, but not its end
        self.added = 0  # spans that events depend on
        self._ancestry = ancestry
        self._notices = notices
        self._reorder_s = reorder_s
        self._parent_wait_s = parent_wait_s
        self.ended_ns = after_ns  # latest end, 0: none; spans that started before it are dropped
        self._waiting: dict[tuple[str, str], _Waiting] = {}  # in order of arrival
        self._edges: list[_Edge] = []
        self._begin()

    def _begin(self) -> None:
        self.open = False
        self._workload = ""
        self._sequence = 0
        self._steps: dict[tuple[str, str], tuple[int, str]] = {}  # running spans: number of the step, and agent
        self._next_step = 0
        self._first_ns = _ALL_NS
        # An end and the next start must differ as float seconds.
        self._emitted_ns = self.ended_ns + 1000 if self.ended_ns else 0

    @property
    def waiting(self) -> int:
        """Spans whose events have not all been emitted."""
        return len(self._waiting)

    def add(self, span: Span, arrived_at: float) -> bool:
        """Adds a span that is not known yet. Returns whether events depend on it."""
        self.last_span_at = max(self.last_span_at, arrived_at)
        key = (span.trace, span.id)
        edges = []
        if span.is_step or span.is_tool:
            rank = _ENDS if span.end_ns > span.start_ns else _ENDS_AT_ONCE
            edges = [_Edge(span.start_ns, _STARTS, *key), _Edge(span.end_ns, rank, *key)]
        if span.may_end:
            edges.append(_Edge(span.end_ns, _WORKFLOW_ENDS, *key))
        if edges:
            self.added += 1
            self._waiting[key] = _Waiting(span, arrived_at)
            for edge in edges:
                heapq.heappush(self._edges, edge)
        return bool(edges)

    def adopt(self, other: "Workflow", emitted: Iterable[Span], now: float) -> int:
        """Takes over another workflow's waiting spans and `emitted` ones. Returns how many began before this one's end."""
        arrivals = [*other._waiting.values()]
        arrivals += [_Waiting(span, now) for span in emitted if (span.trace, span.id) not in other._waiting]
        timely = [arrival for arrival in arrivals if arrival.span.start_ns > self.ended_ns]
        for span, arrived_at in timely:
            self.add(span, arrived_at)
        self._waiting = dict(sorted(self._waiting.items(), key=lambda item: item[1].arrived_at))
        return len(arrivals) - len(timely)

    def release(self, now: float) -> Iterator[WorkflowEvent]:
        """Yields the events that need wait no longer."""
        due = 0
        for span, arrived_at in self._waiting.values():
            if arrived_at + self._reorder_s > now:
                break
            due = max(due, span.end_ns)
        while self._edges and self._edges[0].time_ns <= due and not self._must_wait(self._edges[0], now):
            yield from self._emit(heapq.heappop(self._edges))

    def close(self) -> Iterator[WorkflowEvent]:
        """Yields the events of all waiting spans, though others may be missing, and the workflow's end."""
        while self._edges:
            yield from self._emit(heapq.heappop(self._edges))
        if self.open:
            yield self._end(self._emitted_ns)

    def abandon(self) -> Iterator[WorkflowEvent]:
        """Yields the ends of running steps and of the workflow, without its waiting spans: they belong to another workflow."""
        self._edges = [edge for edge in self._edges if edge.key in self._steps and edge.rank in (_ENDS, _ENDS_AT_ONCE)]
        heapq.heapify(self._edges)
        yield from self.close()

    def _must_wait(self, edge: _Edge, now: float) -> bool:
        span, arrived_at = self._waiting[edge.key]
        if edge.rank != _STARTS or not span.is_step or now >= arrived_at + self._parent_wait_s:
            return False
        return not self._ancestry.agent_of(span).final

    def _emit(self, edge: _Edge) -> Iterator[WorkflowEvent]:
        span = self._waiting[edge.key].span
        if edge.rank == _WORKFLOW_ENDS:
            yield from self._end_with(span)
        elif edge.rank == _STARTS:
            yield from self._start(span)
        else:
            yield from self._finish(span)
        # The last edge of a span is its own end, or the workflow's, if it may end that.
        if edge.rank == _WORKFLOW_ENDS or (edge.rank != _STARTS and not span.may_end):
            self._waiting.pop(edge.key, None)

    def _start(self, span: Span) -> Iterator[WorkflowEvent]:
        if span.is_step and self._ancestry.within_step(span):
            return
        self._first_ns = min(self._first_ns, span.start_ns)
        agent = self._ancestry.agent_of(span).name
        if not self.open:
            self.open = True
            self._workload = span.workload
            yield self._event(EventKind.WORKFLOW_STARTED, span.start_ns)
        if span.is_tool:
            self._steps[span.trace, span.id] = (0, agent)
            yield self._event(EventKind.TOOL_STARTED, span.start_ns, agent=agent, tool=span.tool)
            return
        if not agent:
            agent = span.workload or UNKNOWN_AGENT
            self._notices.note(Reason.AGENT_UNKNOWN, f"no span names the agent of some model calls: they go by {agent!r}")
        number, self._next_step = self._next_step, self._next_step + 1
        self._steps[span.trace, span.id] = (number, agent)
        yield self._event(
            EventKind.STEP_STARTED,
            span.start_ns,
            agent=agent,
            step=number,
            prompt_tokens=span.prompt_tokens,
            words=() if number else span.task,
        )

    def _finish(self, span: Span) -> Iterator[WorkflowEvent]:
        started = self._steps.pop((span.trace, span.id), None)
        if started is None:  # its start was not emitted either
            return
        number, agent = started
        if span.is_tool:
            yield self._event(EventKind.TOOL_FINISHED, span.end_ns, agent=agent, tool=span.tool)
            return
        yield self._event(
            EventKind.STEP_FINISHED,
            span.end_ns,
            agent=agent,
            step=number,
            prompt_tokens=span.prompt_tokens,
            output_tokens=span.output_tokens,
            words=span.output,
        )

    def _end_with(self, span: Span) -> Iterator[WorkflowEvent]:
        if not self.open or not self._ends_with(span):
            return
        # Spans that began before the end belong to this workflow, even if they outlast it.
        rest = sorted(edge for edge in self._edges if self._waiting[edge.key].span.start_ns <= span.end_ns)
        self._edges = [edge for edge in self._edges if self._waiting[edge.key].span.start_ns > span.end_ns]
        heapq.heapify(self._edges)
        for edge in rest:
            if edge.rank == _WORKFLOW_ENDS:  # two ends in one
                self._waiting.pop(edge.key, None)
            else:
                yield from self._emit(edge)
        yield self._end(span.end_ns)

    def _ends_with(self, span: Span) -> bool:
        if span.role is Role.WORKFLOW:  # not a workflow inside another one
            return not span.parent or span.start_ns <= self._first_ns
        return self.name == span.trace  # a conversation continues after the end of a trace

    def _end(self, time_ns: int) -> WorkflowEvent:
        event = self._event(EventKind.WORKFLOW_ENDED, time_ns)
        self.ended_ns = self._emitted_ns
        self._begin()
        return event

    def _event(
        self,
        kind: EventKind,
        time_ns: int,
        *,
        agent: str = "",
        tool: str = "",
        step: int = 0,
        prompt_tokens: int = 0,
        output_tokens: int = 0,
        words: tuple[int, ...] = (),
    ) -> WorkflowEvent:
        # A span that arrives too late gets the time of the event before it: those who learn pauses must not see negative ones.
        self._emitted_ns = max(self._emitted_ns, time_ns)
        sequence, self._sequence = self._sequence, self._sequence + 1
        return WorkflowEvent(
            kind=kind,
            workflow=self.name,
            sequence=sequence,
            time=self._emitted_ns / _NS,
            workload=self._workload,
            agent=agent,
            step=step,
            tool=tool,
            prompt_tokens=prompt_tokens,
            output_tokens=output_tokens,
            words=words,
        )
