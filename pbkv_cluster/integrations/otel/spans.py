"""From OTLP to spans that have been checked and hold what workflow events need, and nothing else."""

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
_MAX_TOLD = 8  # problems in one answer: the sender logs it


@dataclass(frozen=True, slots=True)
class Span:
    """A span that has ended."""

    trace: str
    id: str
    parent: str  # "": the trace begins with this one
    start_ns: int  # since the epoch
    end_ns: int
    operation: str = ""  # "": not one of generative AI
    conversation: str = ""
    agent: str = ""
    tool: str = ""
    workload: str = ""
    prompt_tokens: int = 0
    output_tokens: int = 0
    task: tuple[int, ...] = ()  # hashed words of the first message of the user
    output: tuple[int, ...] = ()  # and of the answer

    @property
    def is_step(self) -> bool:
        return self.operation in names.STEPS

    @property
    def is_tool(self) -> bool:
        return self.operation == names.EXECUTE_TOOL

    @property
    def may_end(self) -> bool:
        """Whether its workflow may be over when it is."""
        return not self.parent or self.operation == names.INVOKE_WORKFLOW


@dataclass(slots=True)
class Problems:
    """What is wrong with a request, told in the answer."""

    rejected: int = 0  # spans
    told: list[str] = field(default_factory=list)

    def reject(self, problem: str) -> None:
        self.rejected += 1
        self.warn(problem)

    def warn(self, problem: str) -> None:
        """Notes what does not cost a span."""
        if len(self.told) < _MAX_TOLD and problem not in self.told:
            self.told.append(problem)


def read_spans(request: ExportTraceServiceRequest, problems: Problems) -> Iterator[Span]:
    """The spans of a request; those that are malformed go to `problems`."""
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
        agent="" if is_workflow else agent,  # there it names the workflow
        tool=tool,
        # The span of a workflow ends last: its name comes too late for what is told while the workflow runs.
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
    """Words of the task and of the answer, from the span's attributes or else its events."""
    asked, answered = [attributes.value(names.INPUT_MESSAGES)], [attributes.value(names.OUTPUT_MESSAGES)]
    for event in span.events:
        inside = Attributes(event.attributes)
        asked.append(inside.value(names.INPUT_MESSAGES))
        answered.append(inside.value(names.OUTPUT_MESSAGES))
        if event.name == names.USER_MESSAGE_EVENT:
            asked.append([{"role": _USER, "content": inside.value("content")}])
        elif event.name == names.CHOICE_EVENT:
            answered.append(inside.value("message"))
    return (
        _first_words(names.INPUT_MESSAGES, asked, _USER, problems),
        _first_words(names.OUTPUT_MESSAGES, answered, None, problems),
    )


def _first_words(key: str, sources: list[Any], role: str | None, problems: Problems) -> tuple[int, ...]:
    """A step counts also where what was said cannot be read, so that costs a warning only."""
    for messages in sources:
        if messages is None:
            continue
        try:
            if words := words_of(key, messages, role):
                return words
        except InvalidArgument as error:
            problems.warn(str(error))
    return ()
