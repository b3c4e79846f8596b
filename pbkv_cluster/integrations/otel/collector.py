"""Turns spans, in any order, into workflow events, in one order for each workflow. Bounded; no threads, no I/O."""

from collections import OrderedDict
from collections.abc import Iterator

from pbkv_cluster.core.clock import Clock
from pbkv_cluster.core.config import OtelConfig
from pbkv_cluster.core.workflow.events import WorkflowEvent
from pbkv_cluster.integrations.otel.ancestry import Ancestry
from pbkv_cluster.integrations.otel.history import TraceHistory
from pbkv_cluster.integrations.otel.reading.spans import Span
from pbkv_cluster.integrations.otel.reasons import Notices, Reason
from pbkv_cluster.integrations.otel.workflow import Workflow

_SWEEP_S = 1.0  # between two searches for silent workflows
_REMEMBERED = 65_536  # ended workflows, and traces of conversations
HISTORY_SPANS = 16_384  # steps and tool calls of open traces
_WITHOUT_STEP = "of some traces no span is a model call: is the framework or the client of the model instrumented?"


class SpanCollector:
    """Assigns spans to workflows: by conversation, or else by trace.

    A trace may name its conversation late: often only its root does, which ends last. Then the workflow of the trace ends, and
    all of its steps are told again as steps of the conversation.
    """

    def __init__(self, config: OtelConfig, clock: Clock, notices: Notices | None = None) -> None:
        """Args:
        config: waits and limits.
        clock: measures the waits.
        notices: told of what is dropped and not understood.
        """
        self.notices = notices or Notices()
        self._config = config
        self._clock = clock
        self._ancestry = Ancestry(config.max_spans)
        self._workflows: OrderedDict[str, Workflow] = OrderedDict()  # the one silent for longest first
        self._with_waiting: dict[str, None] = {}  # workflows with spans that wait
        self._sweep_at = 0.0
        self._traces: OrderedDict[str, str] = OrderedDict()  # trace to workflow, once that is decided
        self._ended: OrderedDict[str, int] = OrderedDict()  # end of each workflow that is no longer kept, ns since 1970
        self._history = TraceHistory(HISTORY_SPANS)
        self._abandoned: list[Workflow] = []  # traces that are part of a conversation; `release` tells their ends

    def __len__(self) -> int:
        """Number of workflows that are kept."""
        return len(self._workflows)

    def add(self, span: Span) -> str:
        """Adds a span. Returns why it is refused, or "". Duplicates and late spans are dropped, but not refused."""
        name = self._name(span)
        workflow = self._workflows.get(name)
        if workflow is not None and workflow.waiting >= self._config.max_waiting_spans:
            self.notices.note(Reason.SPAN_REFUSED)
            return f"more than {self._config.max_waiting_spans} spans of one workflow wait (otel.max_waiting_spans)"
        if workflow is None and len(self._workflows) >= 2 * self._config.max_workflows:  # `release` ends the surplus
            self.notices.note(Reason.SPAN_REFUSED)
            return f"more than {self._config.max_workflows} workflows are open (otel.max_workflows)"
        if not self._ancestry.add(span):
            self.notices.note(Reason.SPAN_DUPLICATE)
            return ""
        if workflow is None:
            workflow = self._open(name)
        if span.start_ns <= workflow.ended_ns:
            self.notices.note(Reason.SPAN_LATE)
            return ""
        if workflow.add(span, self._clock.now()) and name == span.trace:
            self._history.add(span)
        self._workflows.move_to_end(name)
        if workflow.waiting:
            self._with_waiting[name] = None
        return ""

    def release(self) -> Iterator[WorkflowEvent]:
        """Yields the events that need wait no longer, and the ends of workflows that are silent or too many."""
        now = self._clock.now()
        for workflow in self._abandoned:
            yield from workflow.abandon()
            self._note_end(workflow)
        self._abandoned.clear()
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
            self.notices.note(Reason.WORKFLOW_DROPPED)
            yield from self._close(next(iter(self._workflows)))

    def _sweep(self, now: float) -> Iterator[WorkflowEvent]:
        """Ends silent workflows. A trace without a model call is probably not one of agents, and is dropped sooner."""
        for name, workflow in list(self._workflows.items()):
            active = workflow.open or workflow.waiting
            if now - workflow.last_span_at >= (self._config.silence_s if active else self._config.parent_wait_s):
                if active:
                    self.notices.note(Reason.WORKFLOW_SILENT)
                elif not workflow.ended_ns:
                    self.notices.note(Reason.TRACE_WITHOUT_STEP, _WITHOUT_STEP)
                yield from self._close(name)

    def _name(self, span: Span) -> str:
        """The workflow of a span: its conversation, or else that of its trace, or else its trace."""
        conversation = self._ancestry.conversation_of(span)
        bound = self._traces.get(span.trace)
        if bound is None and conversation:
            self._traces[span.trace] = bound = conversation
            if len(self._traces) > _REMEMBERED:
                self._traces.popitem(last=False)
            if conversation != span.trace and span.trace in self._workflows:
                self._reassign(span.trace, conversation)
        return conversation or bound or span.trace

    def _reassign(self, trace: str, conversation: str) -> None:
        """Gives the spans of a trace to the conversation that it turns out to be part of."""
        spans = self._history.pop(trace)
        workflow = self._workflows[trace]
        if workflow.open:
            self.notices.note(Reason.WORKFLOW_REASSIGNED)
            if len(spans) < workflow.added:
                self.notices.note(Reason.HISTORY_LOST, "a trace named its conversation after its first steps were forgotten")
            self._abandoned.append(workflow)
        else:
            spans = []
        self._remove(trace)
        target = self._workflows.get(conversation) or self._open(conversation)
        late = target.adopt(workflow, spans, self._clock.now())
        if late:
            self.notices.note(Reason.SPAN_LATE, count=late)
        self._with_waiting[conversation] = None

    def _open(self, name: str) -> Workflow:
        config = self._config
        workflow = Workflow(
            name, self._ancestry, self.notices, config.reorder_s, config.parent_wait_s, self._ended.pop(name, 0)
        )
        workflow.last_span_at = self._clock.now()
        self._workflows[name] = workflow
        return workflow

    def _close(self, name: str) -> Iterator[WorkflowEvent]:
        yield from self._workflows[name].close()
        self._remove(name)

    def _remove(self, name: str) -> None:
        self._with_waiting.pop(name, None)
        self._history.pop(name)
        self._note_end(self._workflows.pop(name))

    def _note_end(self, workflow: Workflow) -> None:
        if workflow.ended_ns:
            self._ended[workflow.name] = workflow.ended_ns
            if len(self._ended) > _REMEMBERED:
                self._ended.popitem(last=False)
