"""The body of a message: its blocks, as messages of a conversation."""

import json
from typing import Annotated, Any, Literal

from pydantic import Field

from pbkv_cluster.core.text.chat_message import ChatMessage, FunctionCall
from pbkv_cluster.gateway.http.openai import fields
from pbkv_cluster.gateway.http.openai.chat_request import tool_json
from pbkv_cluster.gateway.http.openai.fields import Ignored, Neutral
from pbkv_cluster.gateway.http.tools.forced import ForcedCall
from pbkv_cluster.gateway.http.wire.body import Body, Items, JsonObject
from pbkv_cluster.gateway.http.wire.problems import InvalidField


class TextBlock(Body):
    """Text."""

    type: Literal["text"]
    text: str
    cache_control: Ignored = None
    citations: Ignored = None


class ToolUseBlock(Body):
    """A tool call that the model has made."""

    type: Literal["tool_use"]
    id: str
    name: Annotated[str, Field(min_length=1)]
    input: JsonObject
    cache_control: Ignored = None
    caller: Ignored = None
    toolset_name: Ignored = None


class ToolResultBlock(Body):
    """The result of a tool call."""

    type: Literal["tool_result"]
    tool_use_id: str
    content: str | Items[TextBlock] | None = None
    is_error: bool | None = None
    cache_control: Ignored = None
    toolset_name: Ignored = None


class ThinkingBlock(Body):
    """What a model has thought; it is not told again."""

    type: Literal["thinking"]
    thinking: Ignored = None
    signature: Ignored = None


class RedactedThinkingBlock(Body):
    """The same, encrypted."""

    type: Literal["redacted_thinking"]
    data: Ignored = None


Block = Annotated[
    TextBlock | ToolUseBlock | ToolResultBlock | ThinkingBlock | RedactedThinkingBlock, Field(discriminator="type")
]


class Message(Body):
    """A message of the conversation."""

    role: Literal["user", "assistant", "system"]
    content: str | Items[Block]

    def plain(self) -> list[ChatMessage]:
        """As messages of the conversation: each tool result is one of its own, before the text."""
        if isinstance(self.content, str):
            return [ChatMessage(self.role, self.content)]
        texts = tuple(block.text for block in self.content if isinstance(block, TextBlock))
        calls = tuple(
            FunctionCall(block.name, json.dumps(block.input, ensure_ascii=False), block.id)
            for block in self.content
            if isinstance(block, ToolUseBlock)
        )
        found = [_result(block) for block in self.content if isinstance(block, ToolResultBlock)]
        if texts or calls or not found:
            found.append(ChatMessage(self.role, texts, tool_calls=calls))
        return found


class Tool(Body):
    """A tool of the client. Tools that Anthropic's servers run are not supported."""

    type: Literal["custom"] | None = None
    name: Annotated[str, Field(min_length=1, max_length=256)]
    description: str | None = None
    input_schema: JsonObject
    allowed_callers: Annotated[Any, Neutral([], ["direct"])] = None
    cache_control: Ignored = None
    defer_loading: Annotated[Any, Neutral(False)] = None
    strict: Ignored = None
    input_examples: Ignored = None
    eager_input_streaming: Ignored = None


class ToolChoice(Body):
    """Whether the model may call tools."""

    type: Literal["auto", "none", "any", "tool"]
    name: str | None = None
    disable_parallel_tool_use: bool | None = None


class CountRequest(Body):
    """Body of /v1/messages/count_tokens."""

    model: str
    messages: Annotated[Items[Message], Field(min_length=1, max_length=65_536)]
    system: str | Items[TextBlock] | None = None
    tools: Annotated[Items[Tool], Field(max_length=1024)] | None = None
    tool_choice: ToolChoice | None = None
    container: Annotated[Any, Neutral()] = None
    context_management: Annotated[Any, Neutral()] = None
    mcp_servers: Annotated[Any, Neutral([])] = None
    output_config: Annotated[Any, Neutral({})] = None
    output_format: Annotated[Any, Neutral()] = None
    speed: Annotated[Any, Neutral("standard")] = None
    thinking: Annotated[Any, Neutral({"type": "disabled"})] = None
    top_k: Annotated[Any, Neutral()] = None
    cache_control: Ignored = None
    inference_geo: Ignored = None
    service_tier: Ignored = None

    def conversation(self) -> tuple[ChatMessage, ...]:
        """The system prompt and the messages."""
        system = self.system if isinstance(self.system, str | None) else "\n".join(block.text for block in self.system)
        said = [message for each in self.messages for message in each.plain()]
        return (ChatMessage("system", system), *said) if system else tuple(said)

    def offered(self) -> tuple[dict[str, Any], ...]:
        """The tools that the model is told of."""
        if self.tool_choice is not None and self.tool_choice.type == "none":
            return ()
        return tuple(tool_json(tool.name, tool.description, tool.input_schema) for tool in self.tools or ())

    def forced_call(self) -> ForcedCall | None:
        """The call that the request demands; None: the model decides.

        Raises:
            InvalidField: there is no such tool.
        """
        if self.tool_choice is None or self.tool_choice.type not in ("any", "tool"):
            return None
        if self.tool_choice.type == "tool" and not self.tool_choice.name:
            raise InvalidField("tool_choice.name", "tool_choice.name: names the tool")
        name = (self.tool_choice.name or "") if self.tool_choice.type == "tool" else ""
        return ForcedCall.of(name, [tool.name for tool in self.tools or ()])


class MessagesRequest(CountRequest):
    """Body of /v1/messages."""

    max_tokens: fields.MaxTokens
    temperature: Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)] | None = None
    top_p: fields.TopP | None = None
    stop_sequences: Annotated[Items[fields.StopString], Field(max_length=16)] | None = None
    stream: bool | None = None
    metadata: fields.Metadata | None = None
    nvext: fields.Nvext | None = None
    diagnostics: Annotated[Any, Neutral()] = None


def _result(block: ToolResultBlock) -> ChatMessage:
    content = block.content or ""
    return ChatMessage(
        "tool", content if isinstance(content, str) else tuple(part.text for part in content), tool_call_id=block.tool_use_id
    )
