"""Reads OTLP spans: checks them, and keeps only what workflow events need."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1 import trace_pb2

from pbkv_cluster.core.errors import InvalidArgument
from pbkv_cluster.integrations.otel import conventions as names
from pbkv_cluster.integrations.otel.attributes import Attributes
from pbkv_cluster.integrations.otel.messages import words_of

_TRACE_BYTES, _SPAN_BYTES = 16, 8
_USER = "user"
_MAX_MESSAGES = 8  # in one answer, which the sender logs


@dataclass(frozen=True, slots=True)
class Span:
    """An ended span."""

    trace: str
    id: str
    parent: str  # "": it is the root of its trace
    start_ns: int  # since the epoch
    end_ns: int
    operation: str = ""  # "": it has nothing to do with generative AI
    conversation: str = ""
    agent: str = ""
    tool: str = ""
    workload: str = ""
    prompt_tokens: int = 0
    output_tokens: int = 0
    task: tuple[int, ...] = ()  # hashed words of the user's first message
    output: tuple[int, ...] = ()  # hashed words of the answer

    @property
    def is_step(self) -> bool:
        """Whether it is a model call."""
        return self.operation in names.STEPS

    @property
    def is_tool(self) -> bool:
        return self.operation == names.EXECUTE_TOOL

    @property
    def may_end(self) -> bool:
        """Whether its workflow may end with it."""
        return not self.parent or self.operation == names.INVOKE_WORKFLOW


@dataclass(slots=True)
class Problems:
    """Problems of a request, which the answer reports."""

    rejected: int = 0  # spans
    messages: list[str] = field(default_factory=list)

    def reject(self, problem: str) -> None:
        """Adds a problem that a span is rejected for."""
        self.rejected += 1
        self.warn(problem)

    def warn(self, problem: str) -> None:
        """Adds a problem that no span is rejected for."""
        if len(self.messages) < _MAX_MESSAGES and problem not in self.messages:
            self.messages.append(problem)


def read_spans(request: ExportTraceServiceRequest, problems: Problems) -> Iterator[Span]:
    """Yields the spans of a request. Malformed ones are rejected in `problems`."""
    for resource in request.resource_spans:
        count = sum(len(scope.spans) for scope in resource.scope_spans)
        try:
            service = Attributes(resource.resource.attributes).name(names.SERVICE_NAME)
        except InvalidArgument as error:
            problems.warn(f"resource: {error}")
            problems.rejected += count
            continue
        for scope in resource.scope_spans:
            for span in scope.spans:
                try:
                    yield _read(span, service, problems)
                except InvalidArgument as error:
                    problems.reject(f"span {span.name[:80]!r}: {error}")


def _read(span: trace_pb2.Span, service: str, problems: Problems) -> Span:
    _check_id("trace_id", span.trace_id, _TRACE_BYTES)
    _check_id("span_id", span.span_id, _SPAN_BYTES)
    if span.parent_span_id:
        _check_id("parent_span_id", span.parent_span_id, _SPAN_BYTES)
    if not span.start_time_unix_nano:
        raise InvalidArgument("start_time_unix_nano", "must not be 0")
    if span.end_time_unix_nano < span.start_time_unix_nano:
        raise InvalidArgument("end_time_unix_nano", "must not be before start_time_unix_nano")
    attributes = Attributes(span.attributes)
    operation = attributes.name(names.OPERATION)
    agent = attributes.name(names.AGENT_NAME, names.AGENT_ID)
    workflow = attributes.name(names.WORKFLOW_NAME)
    is_workflow = operation == names.INVOKE_WORKFLOW
    is_step = operation in names.STEPS
    tool = attributes.name(names.TOOL_NAME) if operation == names.EXECUTE_TOOL else ""
    if operation == names.EXECUTE_TOOL and not tool:
        raise InvalidArgument(names.TOOL_NAME, f"must not be empty in an {names.EXECUTE_TOOL} span")
    task, output = _words(span, attributes, problems) if is_step else ((), ())
    return Span(
        trace=span.trace_id.hex(),
        id=span.span_id.hex(),
        parent=span.parent_span_id.hex(),
        start_ns=span.start_time_unix_nano,
        end_ns=span.end_time_unix_nano,
        operation=operation,
        conversation=attributes.name(names.CONVERSATION),
        agent="" if is_workflow else agent,  # a workflow's span has the workflow's name in it
        tool=tool,
        # A workflow's span ends last, so its name arrives too late for the events of its steps.
        workload=service if is_workflow else workflow or service,
        prompt_tokens=attributes.count(*names.INPUT_TOKENS) if is_step else 0,
        output_tokens=attributes.count(*names.OUTPUT_TOKENS) if is_step else 0,
        task=task,
        output=output,
    )


def _check_id(field_name: str, value: bytes, size: int) -> None:
    if len(value) != size or not any(value):
        raise InvalidArgument(field_name, f"must be {size} bytes that are not all 0, got {value.hex() or 'none'}")


def _words(span: trace_pb2.Span, attributes: Attributes, problems: Problems) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Hashed words of the task and of the answer, from the span's attributes or, if they have none, its events."""
    inputs, outputs = [attributes.value(names.INPUT_MESSAGES)], [attributes.value(names.OUTPUT_MESSAGES)]
    for event in span.events:
        inside = Attributes(event.attributes)
        inputs.append(inside.value(names.INPUT_MESSAGES))
        outputs.append(inside.value(names.OUTPUT_MESSAGES))
        if event.name == names.USER_MESSAGE_EVENT:
            inputs.append([{"role": _USER, "content": inside.value("content")}])
        elif event.name == names.CHOICE_EVENT:
            outputs.append(inside.value("message"))
    return (
        _first_words(names.INPUT_MESSAGES, inputs, _USER, problems),
        _first_words(names.OUTPUT_MESSAGES, outputs, None, problems),
    )


def _first_words(key: str, sources: list[Any], role: str | None, problems: Problems) -> tuple[int, ...]:
    """Messages that cannot be read cause a warning only: their step counts all the same."""
    for messages in sources:
        if messages is None:
            continue
        try:
            if words := words_of(key, messages, role):
                return words
        except InvalidArgument as error:
            problems.warn(str(error))
    return ()
