"""Messages of a conversation, as chat completion APIs write them."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pbkv_cluster.core.errors import InvalidArgument

_FIELD = "prompt.messages"
_KEYS = ("role", "content", "name", "tool_call_id", "tool_calls")


@dataclass(frozen=True, slots=True)
class FunctionCall:
    """A function that an assistant's message asks to be called."""

    name: str
    arguments: str  # a JSON object
    call_id: str = ""


@dataclass(frozen=True, slots=True)
class ChatMessage:
    """One message. What a model sees of `name`, `tool_call_id` and `tool_calls` is up to its chat template."""

    role: str
    content: str | tuple[str, ...]  # the text, or its parts
    name: str = ""  # of the function whose result this is, or of the speaker
    tool_call_id: str = ""  # of the call whose result this is
    tool_calls: tuple[FunctionCall, ...] = ()

    @property
    def text(self) -> str:
        """The whole text; parts are joined by a newline."""
        return self.content if isinstance(self.content, str) else "\n".join(self.content)

    @property
    def texts(self) -> tuple[str, ...]:
        """Everything that a template may print."""
        return self.role, self.text, self.name, *(text for call in self.tool_calls for text in (call.name, call.arguments))

    @property
    def characters(self) -> int:
        """Size of everything that a template may print."""
        return sum(map(len, self.texts))

    @classmethod
    def from_mapping(cls, message: Mapping[str, Any], position: int = 0) -> "ChatMessage":
        """Reads `{"role": ..., "content": ...}`, where the content is a string or a list of `{"type": "text", "text": ...}`.

        Args:
            message: may have a `name`, a `tool_call_id` and `tool_calls` as well. None is the same as a field left out.
            position: of the message in its conversation, for errors.

        Raises:
            InvalidArgument: a field is unknown, missing or of a wrong type.
        """
        where = f"message {position}"
        _check_keys(message, _KEYS, where)
        calls = message.get("tool_calls") or ()
        if isinstance(calls, str | Mapping) or not isinstance(calls, Sequence):
            raise _wrong(f"{where}: tool_calls must be a list, got {calls!r}")
        content = message.get("content")
        if not message.get("role") or (content is None and not calls):
            raise _wrong(f"{where} must have a role and a content")
        return cls(
            role=_text(message, "role", where),
            content=_content(content, where),
            name=_text(message, "name", where),
            tool_call_id=_text(message, "tool_call_id", where),
            tool_calls=tuple(_function_call(call, f"{where}, tool call {number}") for number, call in enumerate(calls)),
        )


def check_messages(messages: Sequence[ChatMessage]) -> None:
    """Raises:
    InvalidArgument: there are none, one has no role, or arguments of a tool call are no JSON object.
    """
    if not messages:
        raise InvalidArgument(_FIELD, "must hold at least one message")
    for position, message in enumerate(messages):
        if not message.role:
            raise InvalidArgument(f"{_FIELD}.role", f"must not be empty, in message {position}")
        for call in message.tool_calls:
            if not call.name:
                raise InvalidArgument(f"{_FIELD}.tool_calls.name", f"must not be empty, in message {position}")
            parse_arguments(call, position)


def parse_arguments(call: FunctionCall, position: int) -> dict[str, Any]:
    """The arguments of a call as values.

    Raises:
        InvalidArgument: they are no JSON object.
    """
    field = f"{_FIELD}.tool_calls.arguments"
    try:
        arguments: Any = json.loads(call.arguments or "{}")
    except (ValueError, RecursionError) as error:
        raise InvalidArgument(field, f"must be a JSON object, in message {position}: {error}") from error
    if not isinstance(arguments, dict):
        raise InvalidArgument(field, f"must be a JSON object, in message {position}")
    return arguments


def _content(content: Any, where: str) -> str | tuple[str, ...]:
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    if isinstance(content, bytes | Mapping) or not isinstance(content, Sequence):
        raise _wrong(f"{where}: content must be a string or a list of parts, got {content!r}")
    return tuple(_part(part, f"{where}, part {number}") for number, part in enumerate(content))


def _part(part: Any, where: str) -> str:
    if isinstance(part, str):
        return part
    if not isinstance(part, Mapping):
        raise _wrong(f'{where} must be {{"type": "text", "text": …}}, got {part!r}')
    kind = part.get("type")
    if kind not in ("text", "input_text", "output_text"):
        raise _wrong(f"{where}: only parts of type text are supported, got {kind!r}")
    _check_keys(part, ("type", "text"), where)
    if "text" not in part:
        raise _wrong(f"{where} has no text")
    return _text(part, "text", where)


def _function_call(call: Any, where: str) -> FunctionCall:
    """Reads `{"id": ..., "type": "function", "function": {"name": ..., "arguments": ...}}`."""
    if not isinstance(call, Mapping):
        raise _wrong(f"{where} must be an object, got {call!r}")
    _check_keys(call, ("id", "type", "function"), where)
    if call.get("type", "function") != "function":
        raise _wrong(f"{where}: only calls of type function are supported, got {call['type']!r}")
    function = call.get("function")
    if not isinstance(function, Mapping):
        raise _wrong(f"{where} must have a function with a name and arguments")
    _check_keys(function, ("name", "arguments"), where)
    arguments = function.get("arguments")
    if isinstance(arguments, Mapping):
        try:
            arguments = json.dumps(arguments, ensure_ascii=False)
        except (TypeError, ValueError) as error:
            raise _wrong(f"{where}: arguments cannot be written as JSON: {error}") from error
        return FunctionCall(_text(function, "name", where), arguments, _text(call, "id", where))
    return FunctionCall(_text(function, "name", where), _text(function, "arguments", where), _text(call, "id", where))


def _check_keys(given: Mapping[str, Any], known: Sequence[str], where: str) -> None:
    for key, value in given.items():
        if key not in known and value is not None:
            raise _wrong(f"{where} has an unknown field {key!r}; known are {', '.join(known)}")


def _text(given: Mapping[str, Any], key: str, where: str) -> str:
    value = given.get(key)
    if value is None:
        return ""
    if not isinstance(value, str):
        raise _wrong(f"{where}: {key} must be a string, got {value!r}")
    return value


def _wrong(problem: str) -> InvalidArgument:
    return InvalidArgument(_FIELD, problem)
