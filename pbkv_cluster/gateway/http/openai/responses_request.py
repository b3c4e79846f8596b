"""The body of a response: its input items, as messages."""

import json
from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field
from pydantic import Tag as Variant

from pbkv_cluster.core.text.chat_message import ChatMessage, FunctionCall
from pbkv_cluster.gateway.http.openai import fields
from pbkv_cluster.gateway.http.openai.chat_request import tool_json
from pbkv_cluster.gateway.http.openai.fields import Ignored, Neutral
from pbkv_cluster.gateway.http.wire.body import Body, Items, JsonObject
from pbkv_cluster.gateway.http.wire.problems import InvalidField


class Text(Body):
    """Text of a message."""

    type: Literal["input_text", "output_text", "text"]
    text: str
    annotations: Ignored = None
    logprobs: Ignored = None
    prompt_cache_breakpoint: Ignored = None


class Refusal(Body):
    """A refusal, which is text to the model."""

    type: Literal["refusal"]
    refusal: str


class MessageItem(Body):
    """A message."""

    type: Literal["message"] = "message"
    role: Literal["system", "developer", "user", "assistant"]
    content: str | Items[Annotated[Text | Refusal, Field(union_mode="left_to_right")]]
    id: Ignored = None
    status: Ignored = None
    phase: Ignored = None


class CallItem(Body):
    """A function call that the model has made."""

    type: Literal["function_call"]
    call_id: str
    name: Annotated[str, Field(min_length=1)]
    arguments: fields.Arguments
    is_async: Ignored = Field(None, alias="async")
    caller: Ignored = None
    id: Ignored = None
    namespace: Ignored = None
    status: Ignored = None


class ResultItem(Body):
    """The result of a function call."""

    type: Literal["function_call_output"]
    call_id: str
    output: str | Items[Text]
    caller: Ignored = None
    id: Ignored = None
    name: Ignored = None
    namespace: Ignored = None
    status: Ignored = None


class ReasoningItem(Body):
    """What a model has thought; it is not told again."""

    type: Literal["reasoning"]
    summary: Ignored = None
    content: Ignored = None
    encrypted_content: Ignored = None
    id: Ignored = None
    status: Ignored = None


def _variant(item: Any) -> str:
    kind = item.get("type", "message") if isinstance(item, dict) else getattr(item, "type", "message")
    return kind if isinstance(kind, str) else ""


Item = Annotated[
    Annotated[MessageItem, Variant("message")]
    | Annotated[CallItem, Variant("function_call")]
    | Annotated[ResultItem, Variant("function_call_output")]
    | Annotated[ReasoningItem, Variant("reasoning")],
    Discriminator(_variant),
]


class FunctionTool(Body):
    """A function that the model may call. Tools that OpenAI's servers run are not supported."""

    type: Literal["function"]
    name: Annotated[str, Field(min_length=1, max_length=256)]
    description: str | None = None
    parameters: JsonObject | None = None
    allowed_callers: Annotated[Any, Neutral([], ["direct"])] = None
    is_async: Annotated[Any, Neutral(False)] = Field(None, alias="async")
    defer_loading: Annotated[Any, Neutral(False)] = None
    output_schema: Ignored = None
    strict: bool | None = None  # told again in the answer


class ResponsesRequest(Body):
    """Body of /v1/responses."""

    model: str
    input: str | Annotated[Items[Item], Field(min_length=1, max_length=65_536)]
    instructions: str | None = None
    max_output_tokens: fields.MaxTokens | None = None
    temperature: fields.Temperature | None = None
    top_p: fields.TopP | None = None
    stream: bool | None = None
    tools: Annotated[Items[FunctionTool], Field(max_length=1024)] | None = None
    tool_choice: fields.ToolChoice = None
    parallel_tool_calls: bool | None = None
    metadata: fields.Metadata | None = None
    prompt_cache_key: str | None = None
    nvext: fields.Nvext | None = None
    access_programs: Annotated[Any, Neutral({})] = None
    background: Annotated[Any, Neutral(False)] = None
    background_options: Annotated[Any, Neutral({})] = None
    context_management: Annotated[Any, Neutral([])] = None
    conversation: Annotated[Any, Neutral()] = None
    image: Annotated[Any, Neutral({})] = None
    max_tool_calls: Annotated[Any, Neutral()] = None
    moderation: Annotated[Any, Neutral()] = None
    previous_response_id: Annotated[Any, Neutral()] = None
    prompt: Annotated[Any, Neutral()] = None
    reasoning: Annotated[Any, Neutral({}, {"effort": "none"})] = None
    text: Annotated[Any, Neutral({}, {"format": {"type": "text"}})] = None
    top_logprobs: Annotated[Any, Neutral(0)] = None
    truncation: Annotated[Any, Neutral("disabled")] = None
    include: Ignored = None
    prompt_cache_options: Ignored = None
    prompt_cache_retention: Ignored = None
    safety_identifier: Ignored = None
    service_tier: Ignored = None
    store: Ignored = None
    stream_options: Ignored = None
    user: Ignored = None

    def messages(self) -> tuple[ChatMessage, ...]:
        """The conversation. Calls belong to the assistant's message before them.

        Raises:
            InvalidField: arguments of a call are no JSON object.
        """
        found = [ChatMessage("system", self.instructions)] if self.instructions else []
        if isinstance(self.input, str):
            return (*found, ChatMessage("user", self.input))
        for position, item in enumerate(self.input):
            match item:
                case MessageItem():
                    found.append(ChatMessage("system" if item.role == "developer" else item.role, _content(item.content)))
                case CallItem():
                    call = FunctionCall(item.name, _arguments(item.arguments, position), item.call_id)
                    last = found.pop() if found and found[-1].role == "assistant" else ChatMessage("assistant", "")
                    found.append(ChatMessage("assistant", last.content, tool_calls=(*last.tool_calls, call)))
                case ResultItem():
                    found.append(ChatMessage("tool", _content(item.output), tool_call_id=item.call_id))
        return tuple(found)

    def offered(self) -> list[dict[str, Any]]:
        """The tools as chat templates take them."""
        return [tool_json(tool.name, tool.description, tool.parameters) for tool in self.tools or ()]


def _content(content: Any) -> str | tuple[str, ...]:
    if isinstance(content, str):
        return content
    return tuple(part.refusal if isinstance(part, Refusal) else part.text for part in content)


def _arguments(text: str, position: int) -> str:
    try:
        if isinstance(json.loads(text or "{}"), dict):
            return text
    except (ValueError, RecursionError):
        pass
    raise InvalidField(f"input[{position}].arguments", f"input[{position}].arguments: must be a JSON object")
