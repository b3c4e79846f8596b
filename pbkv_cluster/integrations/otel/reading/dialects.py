"""The attributes by which instrumentations tell what a span is: one row for each dialect.

A span may follow several dialects at once: its role comes from the first row that knows its kind, and every other fact from the
first row that has it. To teach the receiver another instrumentation, add a row.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from enum import Enum, auto
from functools import cache
from typing import Any

SERVICE_NAME = "service.name"  # of the resource
USER_MESSAGE_EVENT = "gen_ai.user.message"  # conventions up to 1.36 have an event for each message
CHOICE_EVENT = "gen_ai.choice"


class Role(Enum):
    """What a span is to its workflow."""

    STEP = auto()  # a model call with a prompt
    TOOL = auto()
    AGENT = auto()  # the steps inside are its agent's
    GRAPH = auto()  # a run of an application: its name is the agent's only if there is no task between it and the step
    TASK = auto()  # a part of a graph; the outermost one is the agent
    WORKFLOW = auto()  # a run of an application, which ends with it; its name is not an agent's
    OTHER = auto()


class Form(Enum):
    """How messages are written."""

    MESSAGES = auto()  # a list of messages, structured or as JSON
    TEXT = auto()  # one text
    NUMBERED = auto()  # an attribute for each field of each message: prefix.0.role, prefix.0.content


@dataclass(frozen=True, slots=True)
class Messages:
    """Where messages are."""

    key: str
    form: Form = Form.MESSAGES
    role: str = "role"  # after the number, in numbered messages
    content: str = "content"
    parts: str = ""  # after the number of a part, if a content may be split up
    part_text: str = ""


@dataclass(frozen=True, slots=True, eq=False)
class Dialect:
    """Names of attributes; of several, the first that is present counts."""

    name: str
    heads: tuple[str, ...]  # a span follows the dialect if the first part of some attribute's name is among these
    kind: str  # says what a span is
    roles: Mapping[str, Role]  # by the kind's value, as `normalised` returns it
    conversation: tuple[str, ...] = ()
    agent: tuple[str, ...] = ()
    graph_path: tuple[str, ...] = ()  # LangGraph's path of nodes
    entity: tuple[str, ...] = ()  # name of an AGENT, a GRAPH or a TASK itself
    named_by_span: bool = False  # an agent that has no attribute with its name has the span's
    tool: tuple[str, ...] = ()
    workflow: tuple[str, ...] = ()  # name of the application
    input_tokens: tuple[str, ...] = ()
    output_tokens: tuple[str, ...] = ()
    input_messages: tuple[Messages, ...] = ()
    output_messages: tuple[Messages, ...] = ()


CONVENTIONS = Dialect(  # https://opentelemetry.io/docs/specs/semconv/gen-ai/
    "gen_ai",
    heads=("gen_ai",),
    kind="gen_ai.operation.name",
    roles={
        "chat": Role.STEP,
        "text_completion": Role.STEP,
        "completion": Role.STEP,
        "generate_content": Role.STEP,
        "llm_request": Role.STEP,
        "execute_tool": Role.TOOL,
        "invoke_agent": Role.AGENT,
        "invoke_workflow": Role.WORKFLOW,
        "execute_task": Role.TASK,
        "agent_step": Role.OTHER,
        "create_agent": Role.OTHER,
        "embeddings": Role.OTHER,
        "goto": Role.OTHER,
        "plan": Role.OTHER,
        "rerank": Role.OTHER,
        "retrieval": Role.OTHER,
        "vector_db_retrieve": Role.OTHER,
    },
    conversation=("gen_ai.conversation.id",),
    agent=("gen_ai.agent.name", "gen_ai.agent.id"),
    entity=("gen_ai.task.name",),
    tool=("gen_ai.tool.name",),
    workflow=("gen_ai.workflow.name",),  # conventions up to 1.41; later ones use the agent's name
    input_tokens=("gen_ai.usage.input_tokens", "gen_ai.usage.prompt_tokens"),  # the second: before 1.27, still in use
    output_tokens=("gen_ai.usage.output_tokens", "gen_ai.usage.completion_tokens"),
    input_messages=(Messages("gen_ai.input.messages"),),
    output_messages=(Messages("gen_ai.output.messages"),),
)

_LANGGRAPH_IN_TRACELOOP = "traceloop.association.properties."

_TRACELOOP = Dialect(  # OpenLLMetry: what its decorators and its instrumentations of frameworks say
    "traceloop",
    heads=("traceloop",),
    kind="traceloop.span.kind",
    roles={
        "workflow": Role.GRAPH,
        "agent": Role.AGENT,
        "task": Role.TASK,
        "tool": Role.TOOL,
        "unknown": Role.OTHER,
    },
    conversation=tuple(_LANGGRAPH_IN_TRACELOOP + name for name in ("conversation_id", "session_id", "thread_id", "chat_id")),
    graph_path=(
        _LANGGRAPH_IN_TRACELOOP + "langgraph_checkpoint_ns",
        _LANGGRAPH_IN_TRACELOOP + "langgraph_node",
    ),
    entity=("traceloop.entity.name",),
    tool=("traceloop.entity.name",),
)

_OPENLLMETRY = Dialect(  # its model calls before it followed the conventions
    "openllmetry",
    heads=("llm", "gen_ai"),
    kind="llm.request.type",
    roles={
        "chat": Role.STEP,
        "completion": Role.STEP,
        "embedding": Role.OTHER,
        "rerank": Role.OTHER,
        "unknown": Role.OTHER,
    },
    input_tokens=("llm.usage.prompt_tokens",),
    output_tokens=("llm.usage.completion_tokens",),
    input_messages=(Messages("gen_ai.prompt", Form.NUMBERED), Messages("llm.prompts", Form.NUMBERED)),
    output_messages=(Messages("gen_ai.completion", Form.NUMBERED), Messages("llm.completions", Form.NUMBERED)),
)

_OPENINFERENCE = Dialect(  # https://github.com/Arize-ai/openinference/blob/main/spec/semantic_conventions.md
    "openinference",
    heads=("openinference",),  # its other names are general ones, such as session.id, and count only beside the kind
    kind="openinference.span.kind",
    roles={
        "llm": Role.STEP,
        "tool": Role.TOOL,
        "agent": Role.AGENT,
        "chain": Role.OTHER,
        "decision": Role.OTHER,
        "embedding": Role.OTHER,
        "evaluator": Role.OTHER,
        "guardrail": Role.OTHER,
        "prompt": Role.OTHER,
        "reranker": Role.OTHER,
        "retriever": Role.OTHER,
        "unknown": Role.OTHER,
    },
    named_by_span=True,
    conversation=("session.id",),
    agent=("agent.name", "graph.node.name", "graph.node.id"),
    graph_path=("metadata.langgraph_checkpoint_ns", "metadata.langgraph_node"),
    tool=("tool.name",),
    input_tokens=("llm.token_count.prompt",),
    output_tokens=("llm.token_count.completion",),
    input_messages=(
        Messages(
            "llm.input_messages",
            Form.NUMBERED,
            role="message.role",
            content="message.content",
            parts="message.contents",
            part_text="message_content.text",
        ),
    ),
    output_messages=(
        Messages(
            "llm.output_messages",
            Form.NUMBERED,
            role="message.role",
            content="message.content",
            parts="message.contents",
            part_text="message_content.text",
        ),
    ),
)

_VERCEL_METADATA = "ai.telemetry.metadata."

_VERCEL = Dialect(  # https://ai-sdk.dev/docs/ai-sdk-core/telemetry
    "vercel",
    heads=("ai",),
    kind="ai.operationId",
    roles={
        "ai.generate_text": Role.AGENT,
        "ai.stream_text": Role.AGENT,
        "ai.generate_object": Role.AGENT,
        "ai.stream_object": Role.AGENT,
        "ai.generate_text.do_generate": Role.STEP,
        "ai.stream_text.do_stream": Role.STEP,
        "ai.generate_object.do_generate": Role.STEP,
        "ai.stream_object.do_stream": Role.STEP,
        "ai.tool_call": Role.TOOL,
        "ai.embed": Role.OTHER,
        "ai.embed.do_embed": Role.OTHER,
        "ai.embed_many": Role.OTHER,
        "ai.embed_many.do_embed": Role.OTHER,
        "ai.rerank": Role.OTHER,
        "ai.rerank.do_rerank": Role.OTHER,
    },
    conversation=tuple(_VERCEL_METADATA + name for name in ("conversationId", "sessionId", "threadId", "chatId")),
    agent=(_VERCEL_METADATA + "agentName", "ai.telemetry.functionId"),
    tool=("ai.toolCall.name",),
    input_tokens=("ai.usage.inputTokens", "ai.usage.promptTokens"),
    output_tokens=("ai.usage.outputTokens", "ai.usage.completionTokens"),
    input_messages=(Messages("ai.prompt.messages"),),
    output_messages=(Messages("ai.response.text", Form.TEXT),),
)

# Traceloop goes first: it calls a whole graph an agent in the words of the conventions.
DIALECTS = (_TRACELOOP, CONVENTIONS, _OPENINFERENCE, _OPENLLMETRY, _VERCEL)

HEADS = frozenset(f"{head}.*" for dialect in DIALECTS for head in dialect.heads)
JSON_ATTRIBUTES = ("metadata",)  # "metadata.x" is member x of the JSON in the attribute "metadata"


def dialects_of(keys: Iterable[str]) -> tuple[Dialect, ...]:
    """The dialects that a span with these attributes may follow."""
    heads = {key.partition(".")[0] for key in keys}
    return tuple(dialect for dialect in DIALECTS if not heads.isdisjoint(dialect.heads))


@cache
def all_names(dialects: tuple[Dialect, ...]) -> Dialect:
    """The names of several dialects, those of the first one first; without a kind of its own."""
    joined: dict[str, Any] = {
        each.name: sum((getattr(dialect, each.name) for dialect in dialects), ())
        for each in fields(Dialect)
        if each.name not in ("name", "kind", "roles", "heads", "named_by_span")
    }
    return Dialect("all", heads=(), kind="", roles={}, **joined)


_WORD_START = re.compile(r"(?<=[a-z0-9])(?=[A-Z])")
_SEPARATORS = re.compile(r"[\s_-]+")


def normalised(kind: str) -> str:
    """A kind without differences of spelling: "Chat", "InvokeAgent" and "text-completion" are meant as chat, invoke_agent and
    text_completion.
    """
    return _SEPARATORS.sub("_", _WORD_START.sub("_", kind.strip())).casefold()
