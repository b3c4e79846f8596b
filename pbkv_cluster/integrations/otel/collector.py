"""Spans in, in any order; workflow events out, in one order per workflow. Bounded in all that it keeps; no threads, no I/O."""

from collections import Counter, OrderedDict
from collections.abc import Iterator
from enum import StrEnum

from pbkv_cluster.core.clock import Clock
from pbkv_cluster.core.config import OtelConfig
from pbkv_cluster.core.events import WorkflowEvent
from pbkv_cluster.integrations.otel.ancestry import Ancestry
from pbkv_cluster.integrations.otel.spans import Span
from pbkv_cluster.integrations.otel.workflow import Workflow

_SWEEP_S = 1.0  # between two looks for workflows that are silent
_REMEMBERED = 65_536  # workflows that have ended, and traces of conversations


class Reason(StrEnum):
    """What became of spans and workflows, but for those that were told and ended as they should."""

    SPAN_DUPLICATE = "span_duplicate"
    SPAN_LATE = "span_late"  # it began before its workflow ended, and came after that was told
    SPAN_REFUSED = "span_refused"  # too many wait
    WORKFLOW_SILENT = "workflow_silent"  # nothing was heard of it for otel.silence_s: it has ended
    WORKFLOW_DROPPED = "workflow_dropped"  # too many: the one that was silent longest was ended


class SpanCollector:
    """Sorts spans into workflows: by conversation, else by trace."""

    def __init__(self, config: OtelConfig, clock: Clock) -> None:
        self._config = config
        self._clock = clock
        self._ancestry = Ancestry(config.max_spans)
        self._workflows: OrderedDict[str, Workflow] = OrderedDict()  # longest silent first
        self._busy: dict[str, None] = {}  # those of which spans wait
        self._sweep_at = 0.0
        self._traces: OrderedDict[str, str] = OrderedDict()  # the workflow of each trace that has one
        self._ended: OrderedDict[str, int] = OrderedDict()  # when workflows ended that are not kept any more, ns
        self.counts: Counter[Reason] = Counter()

    def __len__(self) -> int:
        """Workflows kept."""
        return len(self._workflows)

    def add(self, span: Span) -> str:
        """Takes a span. Returns why it is refused, or ""; duplicates and late ones are no fault of the sender's."""
        name = self._name(span)
        workflow = self._workflows.get(name)
        if workflow is not None and workflow.waiting >= self._config.max_waiting_spans:
            self.counts[Reason.SPAN_REFUSED] += 1
            return f"more than {self._config.max_waiting_spans} spans of one workflow wait (otel.max_waiting_spans)"
        if workflow is None and len(self._workflows) >= 2 * self._config.max_workflows:  # the surplus ends at the next release
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
            self._busy[name] = None
        return ""

    def release(self) -> Iterator[WorkflowEvent]:
        """The events whose time has come; and the ends of workflows that are silent, or too many."""
        now = self._clock.now()
        for name in list(self._busy):
            workflow = self._workflows[name]
            yield from workflow.release(now)
            if not workflow.waiting:
                del self._busy[name]
                if workflow.ended_ns and not workflow.open:
                    self._remove(name)
        if now >= self._sweep_at:
            self._sweep_at = now + _SWEEP_S
            yield from self._sweep(now)
        while len(self._workflows) > self._config.max_workflows:
            self.counts[Reason.WORKFLOW_DROPPED] += 1
            yield from self._close(next(iter(self._workflows)))

    def _sweep(self, now: float) -> Iterator[WorkflowEvent]:
        """Ends what is silent. A trace in which no model was called yet is most likely of something else, and goes sooner."""
        for name, workflow in list(self._workflows.items()):
            active = workflow.open or workflow.waiting
            if now - workflow.heard_at >= (self._config.silence_s if active else self._config.parent_wait_s):
                if active:
                    self.counts[Reason.WORKFLOW_SILENT] += 1
                yield from self._close(name)

    def _name(self, span: Span) -> str:
        """The workflow of a span. A trace that was told under its own name keeps it, whatever conversation shows up later."""
        conversation = self._ancestry.conversation_of(span)
        bound = self._traces.get(span.trace)
        if bound is None and conversation:
            alone = self._workflows.get(span.trace)
            bound = span.trace if alone is not None and alone.open else conversation
            self._traces[span.trace] = bound
            if len(self._traces) > _REMEMBERED:
                self._traces.popitem(last=False)
            if alone is not None and not alone.open and conversation != span.trace:
                self._remove(span.trace)
                (self._workflows.get(conversation) or self._open(conversation)).adopt(alone)
                self._busy[conversation] = None
        if bound == span.trace:
            return bound
        return conversation or bound or span.trace

    def _open(self, name: str) -> Workflow:
        config = self._config
        workflow = Workflow(name, self._ancestry, config.reorder_s, config.parent_wait_s, self._ended.pop(name, 0))
        workflow.heard_at = self._clock.now()
        self._workflows[name] = workflow
        return workflow

    def _close(self, name: str) -> Iterator[WorkflowEvent]:
        yield from self._workflows[name].close()
        self._remove(name)

    def _remove(self, name: str) -> None:
        ended_ns = self._workflows.pop(name).ended_ns
        self._busy.pop(name, None)
        if ended_ns:
            self._ended[name] = ended_ns
            if len(self._ended) > _REMEMBERED:
                self._ended.popitem(last=False)
