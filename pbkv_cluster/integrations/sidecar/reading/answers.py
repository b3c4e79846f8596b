"""An answer, read while it passes by: its text, its tool calls, its usage. Bounded in bytes, and no reason ever to stop it."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from pydantic_core import from_json

from pbkv_cluster.core.text.chat_message import FunctionCall
from pbkv_cluster.integrations.sidecar.reading.asked import Kind

MAX_BYTES = 8 << 20  # of an answer, or of the text in a stream, that are looked at
_MAX_EVENT_BYTES = 2 << 20
_MAX_CALLS = 128
_MAX_ID_CHARACTERS = 64
_MAX_RESPONSE_ID_CHARACTERS = 256


@dataclass(slots=True)
class Told:
    """What an answer says, so far. Of several choices, the first."""

    text: str = ""
    calls: list[FunctionCall] = field(default_factory=list)
    prompt_tokens: int | None = None
    cached_tokens: int | None = None  # of these; None: not said
    output_tokens: int | None = None
    response_id: str = ""  # of a response, by which later requests may refer to it


class AnswerReader:
    """Takes the bytes of one answer in whatever pieces they come."""

    def __init__(self, kind: Kind, *, streamed: bool) -> None:
        """Args:
        kind: of the path.
        streamed: the answer is a stream of server-sent events, not one JSON value.
        """
        self.has_begun = False  # text or a call has been generated
        self._kind = kind
        self._streamed = streamed
        self._buffer = bytearray()
        self._given_up = False
        self._told = Told()
        self._text: list[str] = []
        self._text_bytes = 0
        self._events = 0  # that had text or calls
        self._calls: dict[int, list[str]] = {}  # name, arguments, id by index

    def push(self, piece: bytes) -> None:
        """The next bytes."""
        if self._given_up:
            return
        self._buffer += piece
        if self._streamed:
            for value in self._complete_events():
                self._take_event(value)
        if len(self._buffer) > (_MAX_EVENT_BYTES if self._streamed else MAX_BYTES):
            self._give_up()

    def finish(self) -> Told:
        """All that the answer has said."""
        if not self._streamed and not self._given_up:
            self._take_whole(_value(bytes(self._buffer)))
        told = self._told
        told.text = told.text or "".join(self._text)
        told.calls = told.calls or [FunctionCall(*parts) for _, parts in sorted(self._calls.items()) if parts[0]]
        if told.output_tokens is None and self._events:
            told.output_tokens = self._events  # engines send an event for each token, or nearly so
        return told

    def _give_up(self) -> None:
        self._given_up = True
        self._buffer.clear()

    # --- server-sent events ---

    def _complete_events(self) -> Iterator[Mapping[str, Any]]:
        while (end := self._buffer.find(b"\n")) >= 0:
            line = bytes(self._buffer[:end]).strip()
            del self._buffer[: end + 1]
            if line.startswith(b"data:"):
                yield _value(line[5:])

    def _take_event(self, event: Mapping[str, Any]) -> None:
        if self._kind is Kind.RESPONSE:
            self._take_response_event(event)
            return
        self._take_usage(event.get("usage"))
        for choice in _list(event.get("choices")):
            if choice.get("index", 0) != 0:
                continue
            delta = choice.get("delta")
            delta = delta if isinstance(delta, Mapping) else choice
            if isinstance(text := delta.get("content", delta.get("text")), str) and text:
                self._add_text(text)
            for call in _list(delta.get("tool_calls")):
                self._add_call(call)
            if delta.get("reasoning") or delta.get("reasoning_content"):
                self._note_output()

    def _take_response_event(self, event: Mapping[str, Any]) -> None:
        if str(event.get("type")).endswith(".delta"):
            self._note_output()
        response = event.get("response")
        if event.get("type") in ("response.completed", "response.incomplete") and isinstance(response, Mapping):
            self._take_whole(response)

    def _add_text(self, text: str) -> None:
        self._note_output()
        self._text_bytes += len(text)
        if self._text_bytes > MAX_BYTES:
            self._give_up()
        else:
            self._text.append(text)

    def _add_call(self, call: Mapping[str, Any]) -> None:
        self._note_output()
        index = call.get("index", 0)
        if not isinstance(index, int) or (index not in self._calls and len(self._calls) >= _MAX_CALLS):
            return
        parts = self._calls.setdefault(index, ["", "", ""])
        function = call.get("function")
        for at, value in enumerate((_get(function, "name"), _get(function, "arguments"), call.get("id"))):
            if isinstance(value, str):
                self._text_bytes += len(value)
                parts[at] += value
        parts[2] = parts[2][:_MAX_ID_CHARACTERS]
        if self._text_bytes > MAX_BYTES:
            self._give_up()

    def _note_output(self) -> None:
        self.has_begun = True
        self._events += 1

    # --- whole answers ---

    def _take_whole(self, answer: Mapping[str, Any]) -> None:
        told = self._told
        self._take_usage(answer.get("usage"))
        if self._kind is Kind.RESPONSE:
            if isinstance(answer.get("id"), str):
                told.response_id = answer["id"][:_MAX_RESPONSE_ID_CHARACTERS]
            for item in _list(answer.get("output")):
                if item.get("type") == "function_call":
                    told.calls.append(_call(item.get("name"), item.get("arguments"), item.get("call_id")))
                elif item.get("type") == "message":
                    told.text += "\n".join(str(part.get("text") or "") for part in _list(item.get("content")))
            return
        for choice in _list(answer.get("choices"))[:1]:
            message = choice.get("message")
            text = _get(message, "content") if isinstance(message, Mapping) else choice.get("text")
            told.text = text if isinstance(text, str) else ""
            for call in _list(_get(message, "tool_calls")):
                function = call.get("function")
                told.calls.append(_call(_get(function, "name"), _get(function, "arguments"), call.get("id")))

    def _take_usage(self, usage: Any) -> None:
        if not isinstance(usage, Mapping):
            return
        told = self._told
        told.prompt_tokens = _count(usage, "prompt_tokens", "input_tokens")
        told.output_tokens = _count(usage, "completion_tokens", "output_tokens")
        details = usage.get("prompt_tokens_details") or usage.get("input_tokens_details")
        told.cached_tokens = _count(details, "cached_tokens") if isinstance(details, Mapping) else None


def _call(name: Any, arguments: Any, call_id: Any) -> FunctionCall:
    return FunctionCall(*(value if isinstance(value, str) else "" for value in (name, arguments, call_id)))


def _count(given: Mapping[str, Any], *names: str) -> int | None:
    found = (given.get(name) for name in names)
    return next((value for value in found if type(value) is int and value >= 0), None)


def _value(text: bytes) -> Mapping[str, Any]:
    try:
        value = from_json(text)
    except ValueError:
        return {}
    return value if isinstance(value, Mapping) else {}


def _get(given: Any, name: str) -> Any:
    return given.get(name) if isinstance(given, Mapping) else None


def _list(given: Any) -> list[Mapping[str, Any]]:
    return [each for each in given if isinstance(each, Mapping)] if isinstance(given, list) else []
