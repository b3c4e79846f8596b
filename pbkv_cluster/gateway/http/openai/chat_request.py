"""The body of a chat completion."""

import json
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field

from pbkv_cluster.core.text.chat_message import ChatMessage, FunctionCall
from pbkv_cluster.gateway.http.openai import fields
from pbkv_cluster.gateway.http.openai.fields import Ignored, Neutral
from pbkv_cluster.gateway.http.tools.forced import ForcedCall
from pbkv_cluster.gateway.http.wire.body import Body, Items, JsonObject
from pbkv_cluster.gateway.http.wire.problems import InvalidField


class TextPart(Body):
    """A part of a message. Images, audio and files are not supported."""

    type: Literal["text"]
    text: str
    cache_control: Ignored = None
    prompt_cache_breakpoint: Ignored = None


class CalledFunction(Body):
    """The function of a tool call, and its arguments as JSON."""

    name: Annotated[str, Field(min_length=1)]
    arguments: fields.Arguments


class ToolCall(Body):
    """A tool call in an assistant's message."""

    id: str = ""
    type: Literal["function"] = "function"
    function: CalledFunction
    index: Ignored = None


class Message(Body):
    """A message of the conversation, which has content, tool calls or a refusal."""

    model_config = ConfigDict(
        json_schema_extra={
            "anyOf": [
                {"required": ["content"], "properties": {"content": {"type": ["string", "array"]}}},
                {"required": ["tool_calls"], "properties": {"tool_calls": {"type": "array", "minItems": 1}}},
                {"required": ["refusal"], "properties": {"refusal": {"type": "string"}}},
            ]
        }
    )

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | Items[TextPart] | None = None
    name: str | None = None
    tool_call_id: str | None = None
    tool_calls: Items[ToolCall] | None = None
    refusal: str | None = None
    annotations: Ignored = None
    reasoning_content: Ignored = None
    audio: None = None
    function_call: None = None

    def plain(self, position: int) -> ChatMessage:
        """As a plain value.

        Raises:
            InvalidField: it says nothing.
        """
        if self.content is None and not self.tool_calls and self.refusal is None:
            raise InvalidField(f"messages[{position}].content", f"messages[{position}] has neither content nor tool calls")
        content = self.content if self.content is not None else self.refusal or ""
        return ChatMessage(
            role="system" if self.role == "developer" else self.role,
            content=content if isinstance(content, str) else tuple(part.text for part in content),
            name=self.name or "",
            tool_call_id=self.tool_call_id or "",
            tool_calls=tuple(
                FunctionCall(call.function.name, _arguments(call, position), call.id) for call in self.tool_calls or ()
            ),
        )


class Function(Body):
    """A function that the model may call."""

    name: Annotated[str, Field(min_length=1, max_length=256)]
    description: str | None = None
    parameters: JsonObject | None = None
    strict: Ignored = None


class Tool(Body):
    """A tool. Only functions are supported."""

    type: Literal["function"]
    function: Function

    def plain(self) -> dict[str, Any]:
        """As chat templates take it."""
        return tool_json(self.function.name, self.function.description, self.function.parameters)


def tool_json(name: str, description: str | None, parameters: dict[str, Any] | None) -> dict[str, Any]:
    """A function as chat templates take it."""
    function = {
        "name": name,
        "description": description or "",
        "parameters": parameters or {"type": "object", "properties": {}},
    }
    return {"type": "function", "function": function}


class ChatRequest(Body):
    """Body of /v1/chat/completions."""

    model: str
    messages: Annotated[Items[Message], Field(min_length=1, max_length=65_536)]
    max_tokens: fields.MaxTokens | None = None
    max_completion_tokens: fields.MaxTokens | None = None
    temperature: fields.Temperature | None = None
    top_p: fields.TopP | None = None
    seed: fields.Seed | None = None
    stop: fields.Stop | None = None
    n: fields.Choices | None = None
    stream: bool | None = None
    stream_options: fields.StreamOptions | None = None
    logprobs: bool | None = None
    top_logprobs: fields.TopLogprobs | None = None
    tools: Annotated[Items[Tool], Field(max_length=1024)] | None = None
    tool_choice: fields.ToolChoice = None
    parallel_tool_calls: bool | None = None
    ignore_eos: bool | None = None
    metadata: fields.Metadata | None = None
    prompt_cache_key: str | None = None
    nvext: fields.Nvext | None = None
    audio: Annotated[Any, Neutral()] = None
    frequency_penalty: Annotated[Any, Neutral(0)] = None
    function_call: Annotated[Any, Neutral()] = None
    functions: Annotated[Any, Neutral()] = None
    logit_bias: Annotated[Any, Neutral({})] = None
    modalities: Annotated[Any, Neutral(["text"])] = None
    moderation: Annotated[Any, Neutral()] = None
    prediction: Annotated[Any, Neutral()] = None
    presence_penalty: Annotated[Any, Neutral(0)] = None
    reasoning_effort: Annotated[Any, Neutral("none")] = None
    response_format: Annotated[Any, Neutral({"type": "text"})] = None
    verbosity: Annotated[Any, Neutral()] = None
    web_search_options: Annotated[Any, Neutral()] = None
    prompt_cache_options: Ignored = None
    prompt_cache_retention: Ignored = None
    safety_identifier: Ignored = None
    service_tier: Ignored = None
    store: Ignored = None
    user: Ignored = None

    def check(self) -> None:
        """Raises:
        InvalidField: fields contradict each other.
        """
        if self.top_logprobs and not self.logprobs:
            raise InvalidField("top_logprobs", "top_logprobs: logprobs must be true")

    def wanted_logprobs(self) -> int | None:
        """Number of likeliest tokens that are told for each; None: no log-probabilities are."""
        return self.top_logprobs or 0 if self.logprobs else None


def offered(tools: "list[dict[str, Any]]", choice: Any) -> tuple[dict[str, Any], ...]:
    """The tools that a model is told of.

    Args:
        tools: of the request.
        choice: its `tool_choice`.
    """
    return () if choice == "none" else tuple(tools)


def forced_call(tools: "list[dict[str, Any]]", choice: Any) -> ForcedCall | None:
    """The call that a request demands; None: the model decides.

    Args:
        tools: of the request.
        choice: its `tool_choice`.

    Raises:
        InvalidField: the choice is none, or there is no such tool.
    """
    match choice:
        case None | "auto" | "none":
            return None
        case "required":
            name = ""
        case {"type": "function", "function": {"name": str(name), **more}, **rest} if name and not more and not rest:
            pass
        case {"type": "function", "name": str(name), **rest} if name and not rest:  # as responses have it
            pass
        case _:
            raise InvalidField(
                "tool_choice", "tool_choice: must be auto, none, required, or name a function", "unsupported_value"
            )
    return ForcedCall.of(name, [tool["function"]["name"] for tool in tools])


def _arguments(call: ToolCall, position: int) -> str:
    text = call.function.arguments
    try:
        if isinstance(json.loads(text or "{}"), dict):
            return text
    except (ValueError, RecursionError):
        pass
    field = f"messages[{position}].tool_calls.function.arguments"
    raise InvalidField(field, f"{field}: must be a JSON object")
