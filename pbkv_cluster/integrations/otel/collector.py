"""Turns spans, in any order, into workflow events, in one order for each workflow. Bounded; no threads, no I/O."""

from collections import Counter, OrderedDict
from collections.abc import Iterator
from enum import StrEnum

from pbkv_cluster.core.clock import Clock
from pbkv_cluster.core.config import OtelConfig
from pbkv_cluster.core.workflow.events import WorkflowEvent
from pbkv_cluster.integrations.otel.ancestry import Ancestry
from pbkv_cluster.integrations.otel.spans import Span
from pbkv_cluster.integrations.otel.workflow import Workflow

_SWEEP_S = 1.0  # between two searches for silent workflows
_REMEMBERED = 65_536  # ended workflows, and traces of conversations


class Reason(StrEnum):
    """Why a span was dropped, or a workflow ended without its last span."""

    SPAN_DUPLICATE = "span_duplicate"
    SPAN_LATE = "span_late"  # it began before its workflow ended, and arrived after that end was emitted
    SPAN_REFUSED = "span_refused"  # too many spans wait, or too many workflows are open
    WORKFLOW_SILENT = "workflow_silent"  # it had no span for otel.silence_s, and was ended
    WORKFLOW_DROPPED = "workflow_dropped"  # too many are open, and this one was silent for longest: it was ended


class SpanCollector:
    """Assigns spans to workflows: by conversation, or else by trace."""

    def __init__(self, config: OtelConfig, clock: Clock) -> None:
        self._config = config
        self._clock = clock
        self._ancestry = Ancestry(config.max_spans)
        self._workflows: OrderedDict[str, Workflow] = OrderedDict()  # the one silent for longest first
        self._with_waiting: dict[str, None] = {}  # workflows with spans that wait
        self._sweep_at = 0.0
        self._traces: OrderedDict[str, str] = OrderedDict()  # trace to workflow, once that is decided
        self._ended: OrderedDict[str, int] = OrderedDict()  # end of each workflow that is no longer kept, ns since 1970
        self.counts: Counter[Reason] = Counter()

    def __len__(self) -> int:
        """Number of workflows that are kept."""
        return len(self._workflows)

    def add(self, span: Span) -> str:
        """Adds a span. Returns why it is refused, or "". Duplicates and late spans are dropped, but not refused."""
        name = self._name(span)
        workflow = self._workflows.get(name)
        if workflow is not None and workflow.waiting >= self._config.max_waiting_spans:
            self.counts[Reason.SPAN_REFUSED] += 1
            return f"more than {self._config.max_waiting_spans} spans of one workflow wait (otel.max_waiting_spans)"
        if workflow is None and len(self._workflows) >= 2 * self._config.max_workflows:  # `release` ends the surplus
            self.counts[Reason.SPAN_REFUSED] += 1
            return f"more than {self._config.max_workflows} workflows are open (otel.max_workflows)"
        if not self._ancestry.add(span):
            self.counts[Reason.SPAN_DUPLICATE] += 1
            return ""
        if workflow is None:
            workflow = self._open(name)
        if span.start_ns <= workflow.ended_ns:
            self.counts[Reason.SPAN_LATE] += 1
            return ""
        workflow.add(span, self._clock.now())
        self._workflows.move_to_end(name)
        if workflow.waiting:
            self._with_waiting[name] = None
        return ""

    def release(self) -> Iterator[WorkflowEvent]:
        """Yields the events that need wait no longer, and the ends of workflows that are silent or too many."""
        now = self._clock.now()
        for name in list(self._with_waiting):
            workflow = self._workflows[name]
            yield from workflow.release(now)
            if not workflow.waiting:
                del self._with_waiting[name]
                if workflow.ended_ns and not workflow.open:
                    self._remove(name)
        if now >= self._sweep_at:
            self._sweep_at = now + _SWEEP_S
            yield from self._sweep(now)
        while len(self._workflows) > self._config.max_workflows:
            self.counts[Reason.WORKFLOW_DROPPED] += 1
            yield from self._close(next(iter(self._workflows)))

    def _sweep(self, now: float) -> Iterator[WorkflowEvent]:
        """Ends silent workflows. A trace without a model call is probably not one of agents, and is dropped sooner."""
        for name, workflow in list(self._workflows.items()):
            active = workflow.open or workflow.waiting
            if now - workflow.last_span_at >= (self._config.silence_s if active else self._config.parent_wait_s):
                if active:
                    self.counts[Reason.WORKFLOW_SILENT] += 1
                yield from self._close(name)

    def _name(self, span: Span) -> str:
        """The workflow of a span. A trace whose events were emitted under its own name keeps that name."""
        conversation = self._ancestry.conversation_of(span)
        bound = self._traces.get(span.trace)
        if bound is None and conversation:
            own = self._workflows.get(span.trace)
            bound = span.trace if own is not None and own.open else conversation
            self._traces[span.trace] = bound
            if len(self._traces) > _REMEMBERED:
                self._traces.popitem(last=False)
            if own is not None and not own.open and conversation != span.trace:
                self._remove(span.trace)
                (self._workflows.get(conversation) or self._open(conversation)).adopt(own)
                self._with_waiting[conversation] = None
        if bound == span.trace:
            return bound
        return conversation or bound or span.trace

    def _open(self, name: str) -> Workflow:
        config = self._config
        workflow = Workflow(name, self._ancestry, config.reorder_s, config.parent_wait_s, self._ended.pop(name, 0))
        workflow.last_span_at = self._clock.now()
        self._workflows[name] = workflow
        return workflow

    def _close(self, name: str) -> Iterator[WorkflowEvent]:
        yield from self._workflows[name].close()
        self._remove(name)

    def _remove(self, name: str) -> None:
        ended_ns = self._workflows.pop(name).ended_ns
        self._with_waiting.pop(name, None)
        if ended_ns:
            self._ended[name] = ended_ns
            if len(self._ended) > _REMEMBERED:
                self._ended.popitem(last=False)
