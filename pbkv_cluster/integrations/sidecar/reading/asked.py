"""A request as far as it can be read. Fields of engines that are not known here, images and errors are none of its concern."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any

from pydantic_core import from_json
from xxhash import xxh3_64_hexdigest

from pbkv_cluster.core import checks, tokens
from pbkv_cluster.core.errors import PermissionDenied
from pbkv_cluster.core.security.caller import current_caller
from pbkv_cluster.core.text.chat_message import ChatMessage, FunctionCall
from pbkv_cluster.gateway.http.sessions.hints import Hints, read_hints

_MAX_ID_CHARACTERS = 64  # of a tool call's id that are looked at: a tool call of an event has at most 256 bytes
_MAX_PRIORITY = 2**31
_OF_OPERATORS = frozenset(("cache_salt", "kv_transfer_params"))  # with them, one tenant could use what is another's


class Kind(Enum):
    """The paths whose answers are steps."""

    CHAT = "/v1/chat/completions"
    COMPLETION = "/v1/completions"
    RESPONSE = "/v1/responses"


@dataclass(frozen=True, slots=True)
class Asked:
    """What a request asks for: `messages`, `text` or `packed` is the prompt; none of them: it cannot be read."""

    kind: Kind
    hints: Hints
    model: str = ""
    messages: tuple[ChatMessage, ...] = ()
    text: str = ""
    packed: bytes = b""  # token ids
    tools: tuple[dict[str, Any], ...] = ()  # `{"type": "function", "function": …}`
    max_tokens: int = 0  # 0: not said
    cache_salt: str = ""
    previous_response: str = ""  # id of the response that this one goes on from
    fields: frozenset[str] = frozenset()  # names of those that it has
    is_plain: bool = True  # text alone, so that a tokenizer tells its tokens

    @property
    def task(self) -> str:
        """The text that states the task: what the user says first."""
        first = next((message for message in self.messages if message.role == "user"), None)
        return self.text if first is None else first.text


def read_request(kind: Kind, body: bytes, headers: Mapping[str, str]) -> Asked:
    """Reads a body and its headers.

    Args:
        kind: of the path.
        body: as it came in.
        headers: by name in lower case.

    Raises:
        InvalidArgument: a header of ours is too long or no text.
        PermissionDenied: the caller is a tenant, and names workflows or blocks as only the sidecar may.
    """
    try:
        found = from_json(body)  # refuses halves of characters, which nothing below could encode
    except ValueError:
        found = None
    fields: dict[str, Any] = found if isinstance(found, dict) else {}
    if not current_caller().is_operator and (foreign := _OF_OPERATORS & fields.keys()):
        raise PermissionDenied(f"{min(foreign)}: is set from the API key of a tenant, which cannot choose it")
    hints = read_hints(headers, _metadata(fields), _cache_key(fields), _priority(fields))
    reader = _Reader()
    messages: tuple[ChatMessage, ...] = ()
    text, packed = "", b""
    match kind:
        case Kind.CHAT:
            messages = tuple(reader.messages(fields.get("messages")))
        case Kind.RESPONSE:
            messages = tuple(reader.items(fields.get("instructions"), fields.get("input")))
        case Kind.COMPLETION:
            text, packed = reader.prompt(fields.get("prompt"))
    return Asked(
        kind=kind,
        hints=hints,
        model=_text(fields.get("model")),
        messages=messages,
        text=text,
        packed=packed,
        tools=tuple(_tools(fields.get("tools"))) if fields.get("tool_choice") != "none" else (),
        max_tokens=_max_tokens(fields),
        cache_salt=_text(fields.get("cache_salt")),
        previous_response=_text(fields.get("previous_response_id")),
        fields=frozenset(fields),
        is_plain=reader.is_plain,
    )


class _Reader:
    """Reads prompts, and notes whether they are more than text."""

    def __init__(self) -> None:
        self.is_plain = True

    def messages(self, given: Any) -> Iterator[ChatMessage]:
        """The conversation of a chat completion."""
        for message in _mappings(given):
            role = _text(message.get("role"))
            yield ChatMessage(
                role="system" if role == "developer" else role,
                content=self._content(message.get("content")),
                name=_text(message.get("name")),
                tool_call_id=_text(message.get("tool_call_id"))[:_MAX_ID_CHARACTERS],
                tool_calls=tuple(_call(each) for each in _mappings(message.get("tool_calls"))),
            )

    def items(self, instructions: Any, given: Any) -> Iterator[ChatMessage]:
        """The conversation of a response. Calls belong to the assistant's message before them."""
        if text := _text(instructions):
            yield ChatMessage("system", text)
        if isinstance(given, str):
            yield ChatMessage("user", given)
            return
        last: ChatMessage | None = None
        for item in _mappings(given):
            if item.get("type") == "function_call":
                before = last if last is not None and last.role == "assistant" else ChatMessage("assistant", "")
                if last is not None and before is not last:
                    yield last
                call_id = _text(item.get("call_id"))[:_MAX_ID_CHARACTERS]
                call = FunctionCall(_text(item.get("name")), _text(item.get("arguments")), call_id)
                last = ChatMessage("assistant", before.content, tool_calls=(*before.tool_calls, call))
            elif (message := self._item(item)) is not None:
                if last is not None:
                    yield last
                last = message
        if last is not None:
            yield last

    def prompt(self, given: Any) -> tuple[str, bytes]:
        """Text and token ids of a completion's prompt. Of several prompts, the first stands for all."""
        first = given[0] if isinstance(given, list) and given and isinstance(given[0], str | list) else given
        if isinstance(first, str):
            return first, b""
        if isinstance(first, list) and first and all(type(each) is int and 0 <= each < 2**31 for each in first):
            return "", tokens.pack(first)
        return "", b""

    def _item(self, item: Mapping[str, Any]) -> ChatMessage | None:
        match item.get("type", "message"):
            case "message":
                role = _text(item.get("role"))
                return ChatMessage("system" if role == "developer" else role, self._content(item.get("content")))
            case "function_call_output":
                call_id = _text(item.get("call_id"))[:_MAX_ID_CHARACTERS]
                return ChatMessage("tool", self._content(item.get("output")), tool_call_id=call_id)
            case "reasoning":
                return None  # it is not told again
        return ChatMessage("user", self._other(item))

    def _content(self, content: Any) -> str | tuple[str, ...]:
        if content is None or isinstance(content, str):
            return content or ""
        return tuple(self._part(part) for part in _mappings(content))

    def _part(self, part: Mapping[str, Any]) -> str:
        text = part.get("text", part.get("refusal"))
        return text if isinstance(text, str) else self._other(part)

    def _other(self, part: Mapping[str, Any]) -> str:
        """What stands for an image and the like: the same text for the same thing."""
        self.is_plain = False
        return f"\0{xxh3_64_hexdigest(json.dumps(part, sort_keys=True).encode())}"


def _call(call: Mapping[str, Any]) -> FunctionCall:
    function = call.get("function")
    known = function if isinstance(function, Mapping) else {}
    return FunctionCall(_text(known.get("name")), _text(known.get("arguments")), _text(call.get("id"))[:_MAX_ID_CHARACTERS])


def _tools(given: Any) -> Iterator[dict[str, Any]]:
    """Functions, as chat templates take them; in responses they are written without the level of `function`."""
    for tool in _mappings(given):
        function = tool.get("function", tool)
        if isinstance(function, Mapping) and _text(function.get("name")):
            parameters = function.get("parameters") or {"type": "object", "properties": {}}
            described = {"name": function["name"], "description": _text(function.get("description")), "parameters": parameters}
            yield {"type": "function", "function": described}


def _metadata(fields: Mapping[str, Any]) -> dict[str, Any]:
    """The metadata that can be names; engines take others as well."""
    given = fields.get("metadata")
    named = given.items() if isinstance(given, Mapping) else ()
    return {name: value for name, value in named if isinstance(value, str) and _is_name(value)}


def _cache_key(fields: Mapping[str, Any]) -> str:
    key = _text(fields.get("prompt_cache_key"))
    return key if _is_name(key) else xxh3_64_hexdigest(key.encode())


def _is_name(value: str) -> bool:
    return len(value.encode()) <= checks.MAX_NAME_BYTES


def _priority(fields: Mapping[str, Any]) -> int | None:
    nvext = fields.get("nvext")
    given = nvext.get("agent_hints") if isinstance(nvext, Mapping) else None
    priority = given.get("priority") if isinstance(given, Mapping) else None
    return priority if type(priority) is int and -_MAX_PRIORITY <= priority < _MAX_PRIORITY else None


def _max_tokens(fields: Mapping[str, Any]) -> int:
    given = (fields.get(name) for name in ("max_completion_tokens", "max_output_tokens", "max_tokens"))
    return next((value for value in given if type(value) is int and value > 0), 0)


def _mappings(given: Any) -> Sequence[Mapping[str, Any]]:
    return [each for each in given if isinstance(each, Mapping)] if isinstance(given, list) else ()


def _text(value: Any) -> str:
    return value if isinstance(value, str) else ""
