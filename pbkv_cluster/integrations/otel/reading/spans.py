"""Reads OTLP spans: checks them, and keeps only what workflow events need."""

from collections.abc import Iterator
from dataclasses import dataclass, field

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1 import trace_pb2

from pbkv_cluster.core.errors import InvalidArgument
from pbkv_cluster.integrations.otel.reading.attributes import Attributes
from pbkv_cluster.integrations.otel.reading.dialects import SERVICE_NAME, Role
from pbkv_cluster.integrations.otel.reading.facts import Facts
from pbkv_cluster.integrations.otel.reasons import Notices, Reason
from pbkv_cluster.simulator.recording.calls import Message

_TRACE_BYTES, _SPAN_BYTES = 16, 8
_NO_SERVICE = "unknown_service"  # what SDKs call an application whose name is not set
_MAX_MESSAGES = 8  # in one answer, which the sender logs


@dataclass(frozen=True, slots=True)
class Span:
    """An ended span."""

    trace: str
    id: str
    parent: str  # "": it is the root of its trace
    start_ns: int  # since the epoch
    end_ns: int
    role: Role = Role.OTHER
    conversation: str = ""
    agent: str = ""
    node: str = ""  # name of a task, which is an agent if no other task is around it
    tool: str = ""
    workload: str = ""
    prompt_tokens: int = 0
    output_tokens: int = 0
    task: tuple[int, ...] = ()  # hashed words of the user's first message
    output: tuple[int, ...] = ()  # hashed words of the answer
    messages: tuple[Message, ...] = ()  # the prompt, if its text was asked for
    reply: str = ""  # likewise

    @property
    def is_step(self) -> bool:
        """Whether it is a model call."""
        return self.role is Role.STEP

    @property
    def is_tool(self) -> bool:
        return self.role is Role.TOOL

    @property
    def may_end(self) -> bool:
        """Whether its workflow may end with it."""
        return not self.parent or self.role is Role.WORKFLOW


@dataclass(slots=True)
class Problems:
    """Problems of a request: the answer reports some of them, and all are counted."""

    notices: Notices = field(default_factory=Notices)
    rejected: int = 0  # spans
    messages: list[str] = field(default_factory=list)

    def reject(self, reason: Reason, problem: str, spans: int = 1) -> None:
        """Notes a problem that spans are rejected for."""
        self.notices.note(reason, problem, spans)
        self.refuse(problem, spans)

    def refuse(self, problem: str, spans: int = 1) -> None:
        """Reports rejected spans that are counted already."""
        self.rejected += spans
        self._report(problem)

    def warn(self, reason: Reason, problem: str) -> None:
        """Notes a problem that no span is rejected for."""
        self.notices.note(reason, problem)
        self._report(problem)

    def _report(self, problem: str) -> None:
        if len(self.messages) < _MAX_MESSAGES and problem not in self.messages:
            self.messages.append(problem)


def read_spans(request: ExportTraceServiceRequest, problems: Problems, with_text: bool = False) -> Iterator[Span]:
    """Yields the spans of a request, with the text of prompts and answers if asked. Malformed ones go to `problems`."""
    for resource in request.resource_spans:
        count = sum(len(scope.spans) for scope in resource.scope_spans)
        try:
            service = Attributes(resource.resource.attributes).name(SERVICE_NAME)
        except InvalidArgument as error:
            problems.reject(Reason.SPAN_MALFORMED, f"resource: {error}", count)
            continue
        if not service or service.startswith(_NO_SERVICE):  # two applications must not become one workload
            service = ""
            problems.notices.note(Reason.SERVICE_UNKNOWN, "an application has no service.name: set OTEL_SERVICE_NAME", count)
        for scope in resource.scope_spans:
            for span in scope.spans:
                try:
                    yield _read(span, service, problems, with_text)
                except InvalidArgument as error:
                    problems.reject(Reason.SPAN_MALFORMED, f"span {span.name[:80]!r}: {error}")


def _read(span: trace_pb2.Span, service: str, problems: Problems, with_text: bool) -> Span:
    _check_id("trace_id", span.trace_id, _TRACE_BYTES)
    _check_id("span_id", span.span_id, _SPAN_BYTES)
    if span.parent_span_id:
        _check_id("parent_span_id", span.parent_span_id, _SPAN_BYTES)
    if not span.start_time_unix_nano:
        raise InvalidArgument("start_time_unix_nano", "must not be 0")
    if span.end_time_unix_nano < span.start_time_unix_nano:
        raise InvalidArgument("end_time_unix_nano", "must not be before start_time_unix_nano")
    facts = Facts(span, problems.warn, problems.notices.note)
    prompt_tokens, output_tokens = facts.tokens()
    task, output = facts.words()
    messages, reply = facts.texts() if with_text else ((), "")
    return Span(
        trace=span.trace_id.hex(),
        id=span.span_id.hex(),
        parent=span.parent_span_id.hex(),
        start_ns=span.start_time_unix_nano,
        end_ns=span.end_time_unix_nano,
        role=facts.role,
        conversation=facts.conversation(),
        agent=facts.agent(),
        node=facts.entity() if facts.role is Role.TASK else "",
        tool=facts.tool(),
        workload=facts.workload(service),
        prompt_tokens=prompt_tokens,
        output_tokens=output_tokens,
        task=task,
        output=output,
        messages=messages,
        reply=reply,
    )


def _check_id(field_name: str, value: bytes, size: int) -> None:
    if len(value) != size or not any(value):
        raise InvalidArgument(field_name, f"must be {size} bytes that are not all 0, got {value.hex() or 'none'}")
