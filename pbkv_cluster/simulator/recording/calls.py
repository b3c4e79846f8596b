"""Calls of a model that somebody has logged as text, whatever the log."""

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from pbkv_cluster.core.errors import InvalidArgument

ASSISTANT, SYSTEM, TOOL = "assistant", "system", "tool"
_ROLES = {"human": "user", "gpt": ASSISTANT, "chatgpt": ASSISTANT, "bing": ASSISTANT, "bard": ASSISTANT, "developer": SYSTEM}


@dataclass(frozen=True, slots=True)
class Message:
    """One message: all that a chat template prints of it."""

    role: str
    text: str


@dataclass(frozen=True, slots=True)
class Call:
    """One call of a model. None and empty: not logged."""

    workflow: str
    workload: str
    agent: str
    messages: tuple[Message, ...] = ()
    reply: str | None = None
    prompt_tokens: int | None = None
    output_tokens: int | None = None
    started_s: float | None = None
    ended_s: float | None = None
    call_site: str = ""
    tool: str = ""  # that the reply calls
    place: str = ""  # in the log, for errors
    recognised: bool = False  # nobody has named the agent: its name was made of its system prompt

    @property
    def prompt_bytes(self) -> int:
        return sum(len(message.text.encode(errors="surrogatepass")) for message in self.messages)


def messages_of(value: Any, field: str) -> tuple[Message, ...]:
    """Messages in any of the usual forms: a text, a message, a list of messages, or an object that holds such a list.

    Args:
        value: decoded JSON, or a text that may be JSON.
        field: named in errors.

    Raises:
        InvalidArgument: it is nothing of the kind.
    """
    if isinstance(value, str):
        try:
            decoded = json.loads(value)
        except (ValueError, RecursionError):
            decoded = None
        if not isinstance(decoded, list | dict):
            return (Message("user", value),) if value else ()
        value = decoded
    if isinstance(value, dict):
        for name in ("messages", "input", "conversations", "kwargs"):
            if isinstance(value.get(name), list | dict):
                return messages_of(value[name], field)
        value = [value]
    if value is None:
        return ()
    if not isinstance(value, list):
        raise InvalidArgument(field, f"must be a list of messages, got {type(value).__name__}")
    return tuple(_message(entry, f"{field}[{position}]") for position, entry in enumerate(value))


def text_of(value: Any) -> str:
    """The content of a message, and the tool calls that it makes, as text."""
    if isinstance(value, str):
        return value
    if isinstance(value, list):
        return "\n".join(text_of(part) for part in value)
    if not isinstance(value, dict):
        return "" if value is None else json.dumps(value)
    for name in ("text", "content", "value"):
        if isinstance(value.get(name), str):
            return str(value[name])
    return json.dumps(value, sort_keys=True)


def tool_names(message: Any) -> Iterator[str]:
    """The tools that a message calls, in OpenAI's or Anthropic's words."""
    if not isinstance(message, dict):
        return
    for call in _list(message.get("tool_calls")):
        function = call.get("function") if isinstance(call, dict) else None
        name = function.get("name") if isinstance(function, dict) else call.get("name") if isinstance(call, dict) else None
        if isinstance(name, str) and name:
            yield name
    for part in _list(message.get("content")):
        if isinstance(part, dict) and part.get("type") == "tool_use" and isinstance(part.get("name"), str):
            yield part["name"]


def message_text(message: Any) -> str:
    """All that a chat template prints of a message but its role."""
    if not isinstance(message, dict):
        return text_of(message)
    content = next((message[name] for name in ("content", "value", "text", "parts") if message.get(name) is not None), None)
    calls = message.get("tool_calls")
    return text_of(content) + (json.dumps(calls, sort_keys=True) if calls else "")


def bytes_per_token(calls: Iterable[Call], default: float = 4.0) -> float:
    """The mean length of a token over those calls that log both text and count; 4 bytes if none does."""
    counted = [(call.prompt_bytes, call.prompt_tokens) for call in calls if call.prompt_tokens and call.prompt_bytes]
    size, tokens = sum(size for size, _ in counted), sum(tokens for _, tokens in counted)
    return max(1.0, size / tokens) if tokens else default


def _message(value: Any, field: str) -> Message:
    if isinstance(value, str):
        return Message("user", value)
    if isinstance(value, dict) and isinstance(value.get("message"), dict):
        value = value["message"]
    if not isinstance(value, dict):
        raise InvalidArgument(field, f"must be a message, got {type(value).__name__}")
    role = value.get("role", value.get("from", value.get("type", "user")))
    if not isinstance(role, str):
        raise InvalidArgument(f"{field}.role", "must be a string")
    return Message(_ROLES.get(role, role), message_text(value))


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []
