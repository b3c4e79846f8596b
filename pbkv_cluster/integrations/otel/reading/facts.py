"""What the attributes of a span tell, whatever dialect they are written in."""

from collections.abc import Callable, Iterable
from typing import Any

from opentelemetry.proto.trace.v1 import trace_pb2

from pbkv_cluster.core.checks import MAX_NAME_BYTES
from pbkv_cluster.core.errors import InvalidArgument
from pbkv_cluster.integrations.otel.reading import dialects
from pbkv_cluster.integrations.otel.reading.attributes import Attributes
from pbkv_cluster.integrations.otel.reading.dialects import DIALECTS, Dialect, Role, all_names
from pbkv_cluster.integrations.otel.reading.messages import messages_at, words_of
from pbkv_cluster.integrations.otel.reasons import Reason
from pbkv_cluster.simulator.recording.calls import Message, messages_of

_USER = "user"
_MAX_SHOWN = 80  # characters of a name in a log

Warn = Callable[[Reason, str], None]


class Facts:
    """Reads one span. Names that cannot be used raise InvalidArgument, and so reject the span; the rest causes a warning."""

    def __init__(self, span: trace_pb2.Span, warn: Warn, note: Warn) -> None:
        """Args:
        span: as OTLP has it.
        warn: told of what cannot be read; the sender hears of it.
        note: told of what is not understood; only our log shows it.
        """
        self._span = span
        self._warn = warn
        self._attributes = Attributes(span.attributes, dialects.JSON_ATTRIBUTES)
        self._dialects = dialects.dialects_of(self._attributes)
        self._names = all_names(self._dialects)
        self._decisive: Dialect | None = None  # the one that knows the role
        self.role = self._find_role(note)

    def conversation(self) -> str:
        return self._attributes.id(*self._names.conversation)

    def agent(self) -> str:
        """The agent that the span names: by its name, or as a node of a LangGraph. A task or a workflow names none."""
        path = self._attributes.text(*self._names.graph_path)
        agent = self._attributes.name(*self._names.agent)
        match self.role:
            case Role.WORKFLOW:
                return ""  # its span has the workflow's name in it
            case Role.AGENT | Role.GRAPH:
                return agent or graph_node(path) or self.entity() or (self._span_name() if self._named_by_span() else "")
            case Role.TASK:
                return graph_node(path)
            case _:
                return agent or graph_node(path)

    def entity(self) -> str:
        """The span's own name as an agent, a graph or a task."""
        return self._attributes.name(*self._names.entity)

    def tool(self) -> str:
        """Raises:
        InvalidArgument: a tool call by the conventions that names no tool.
        """
        if self.role is not Role.TOOL:
            return ""
        name = self._attributes.name(*self._names.tool)
        if not name and self._decisive is dialects.CONVENTIONS:
            raise InvalidArgument(dialects.CONVENTIONS.tool[0], "must not be empty in an execute_tool span")
        return name or self._span_name() or "unknown"

    def workload(self, service: str) -> str:
        # A workflow's span ends last, so its name arrives too late for the events of its steps.
        if self.role is Role.WORKFLOW:
            return service
        return self._attributes.name(*self._names.workflow) or service

    def tokens(self) -> tuple[int, int]:
        """Tokens of the prompt and of the output."""
        if self.role is not Role.STEP:
            return 0, 0
        return (
            self._count(self._names.input_tokens),
            self._count(self._names.output_tokens),
        )

    def words(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Hashed words of the task and of the answer, from the span's attributes or, if they have none, its events."""
        if self.role is not Role.STEP:
            return (), ()
        inputs, outputs = self._sources(whole=False)
        return self._first_words(inputs, _USER), self._first_words(outputs, None)

    def texts(self) -> tuple[tuple[Message, ...], str]:
        """The prompt and the answer as text, as far as the span has them."""
        if self.role is not Role.STEP:
            return (), ""
        inputs, outputs = self._sources(whole=True)
        answer = self._first_messages(outputs)
        return self._first_messages(inputs), answer[0].text if answer else ""

    def _sources(self, whole: bool) -> tuple[list[tuple[str, Any]], list[tuple[str, Any]]]:
        """Messages of the prompt and of the answer, with the attribute that has them; None where it is absent."""
        inputs = [(source.key, messages_at(self._attributes, source, whole)) for source in self._names.input_messages]
        outputs = [(source.key, messages_at(self._attributes, source, whole)) for source in self._names.output_messages]
        conventions = dialects.CONVENTIONS
        for event in self._span.events:
            inside = Attributes(event.attributes)
            inputs += [(source.key, messages_at(inside, source, whole)) for source in conventions.input_messages]
            outputs += [(source.key, messages_at(inside, source, whole)) for source in conventions.output_messages]
            if event.name == dialects.USER_MESSAGE_EVENT:
                inputs.append((event.name, [{"role": _USER, "content": inside.value("content")}]))
            elif event.name == dialects.CHOICE_EVENT:
                outputs.append((event.name, inside.value("message")))
        return inputs, outputs

    def _find_role(self, note: Warn) -> Role:
        unknown = []
        for dialect in self._dialects:
            kind = self._attributes.name(dialect.kind)
            if role := dialect.roles.get(dialects.normalised(kind)):
                self._decisive = dialect
                return role
            if kind:
                unknown.append(f"{dialect.kind} = {kind[:_MAX_SHOWN]!r}")
        if unknown:
            note(Reason.OPERATION_UNKNOWN, f"no step and no tool call is known as {', '.join(unknown)}")
        elif self._dialects:
            kinds = ", ".join(dialect.kind for dialect in DIALECTS)
            heads = ", ".join(sorted({key.partition(".")[0] + ".*" for key in self._attributes} & dialects.HEADS))
            note(Reason.OPERATION_MISSING, f"span {self._span_name()!r} has attributes {heads}, but none of {kinds}")
        return Role.OTHER

    def _named_by_span(self) -> bool:
        return self._decisive is not None and self._decisive.named_by_span

    def _span_name(self) -> str:
        return self._span.name[:_MAX_SHOWN]

    def _count(self, keys: Iterable[str]) -> int:
        try:
            return self._attributes.count(*keys)
        except InvalidArgument as error:
            self._warn(Reason.TOKENS_UNREADABLE, str(error))
            return 0

    def _first_messages(self, sources: Iterable[tuple[str, Any]]) -> tuple[Message, ...]:
        for key, value in sources:
            try:
                if found := messages_of(value, key):
                    return found
            except InvalidArgument as error:
                self._warn(Reason.TEXT_UNREADABLE, str(error))
        return ()

    def _first_words(self, sources: Iterable[tuple[str, Any]], role: str | None) -> tuple[int, ...]:
        for key, messages in sources:
            if messages is None:
                continue
            try:
                if words := words_of(key, messages, role):
                    return words
            except InvalidArgument as error:
                self._warn(Reason.TEXT_UNREADABLE, str(error))
        return ()


def graph_node(path: str) -> str:
    """The agent that a LangGraph path means: "team:1f0c|writer:9a41" is "team/writer", and so are all of its runs.

    A path is cut at its front if it is too long for a name.
    """
    nodes = [node for part in path.split("|") if (node := part.partition(":")[0]) and not node.isdecimal()]
    return "/".join(nodes).encode()[-MAX_NAME_BYTES:].decode(errors="ignore")
