"""The events of a streamed response, and its output items."""

import secrets
from collections.abc import Iterator
from typing import Any, Literal, Protocol

from pbkv_cluster.core.text.chat_message import FunctionCall
from pbkv_cluster.core.usage import Usage
from pbkv_cluster.gateway.http.generation.parts import CallPart, Ended, Part, Started, TextPart
from pbkv_cluster.gateway.http.wire.problems import Problem
from pbkv_cluster.gateway.http.wire.replies import sse

Status = Literal["in_progress", "completed", "incomplete", "failed"]


class Snapshot(Protocol):
    """The whole response, with these items; in progress, it has no usage."""

    def __call__(
        self,
        items: list[dict[str, Any]],
        status: Status = "in_progress",
        usage: Usage | None = None,
        problem: Problem | None = None,
    ) -> dict[str, Any]: ...


def message_item(text: str, *, cut: bool = False) -> dict[str, Any]:
    """A message that has ended; `cut`: it is incomplete."""
    return {
        "id": f"msg_{secrets.token_hex(16)}",
        "type": "message",
        "role": "assistant",
        "status": _ended(cut),
        "content": [_text_part(text)],
    }


def call_item(call: FunctionCall) -> dict[str, Any]:
    """A function call that is complete."""
    return {
        "id": f"fc_{secrets.token_hex(16)}",
        "type": "function_call",
        "status": "completed",
        "call_id": call.call_id,
        "name": call.name,
        "arguments": call.arguments,
    }


class ResponseEvents:
    """Turns the parts of one answer into events, numbered from 0."""

    def __init__(self, snapshot: Snapshot) -> None:
        self._snapshot = snapshot
        self._number = 0
        self._items: list[dict[str, Any]] = []
        self._text: list[str] | None = None  # of the message that is open

    def of(self, part: Part) -> Iterator[bytes]:
        """The events of a part."""
        match part:
            case Started():
                for name in ("response.created", "response.in_progress"):
                    yield self._event(name, response=self._snapshot([]))
            case TextPart():
                yield from self._open_message()
                assert self._text is not None
                self._text.append(part.text)
                yield self._text_event("response.output_text.delta", delta=part.text, logprobs=[])
            case CallPart():
                yield from self._close_message()
                yield from self._call(part.call)
            case Ended():
                if not self._items:
                    yield from self._open_message()
                yield from self._close_message(cut=part.cut)
                status = _ended(part.cut)
                yield self._event(f"response.{status}", response=self._snapshot(self._items, status, part.usage))

    def failed(self, problem: Problem) -> Iterator[bytes]:
        """The events that end an answer that cannot be completed."""
        yield self._event("error", code=problem.code, message=problem.message, param=problem.param)
        if self._text is not None:
            self._items[-1] = self._ended_message(cut=True)
        yield self._event("response.failed", response=self._snapshot(self._items, "failed", problem=problem))

    def _open_message(self) -> Iterator[bytes]:
        if self._text is not None:
            return
        self._text = []
        item = {**message_item(""), "status": "in_progress", "content": []}
        self._items.append(item)
        yield self._event("response.output_item.added", output_index=self._index, item=item)
        yield self._text_event("response.content_part.added", part=_text_part(""))

    def _close_message(self, *, cut: bool = False) -> Iterator[bytes]:
        if self._text is None:
            return
        item = self._items[-1] = self._ended_message(cut)
        (part,) = item["content"]
        self._text = None
        yield self._text_event("response.output_text.done", text=part["text"], logprobs=[])
        yield self._text_event("response.content_part.done", part=part)
        yield self._event("response.output_item.done", output_index=self._index, item=item)

    def _ended_message(self, cut: bool) -> dict[str, Any]:
        """The message that is open, with all its text."""
        return {**message_item("".join(self._text or ()), cut=cut), "id": self._items[-1]["id"]}

    def _call(self, call: FunctionCall) -> Iterator[bytes]:
        item = call_item(call)
        self._items.append(item)
        begun = {**item, "status": "in_progress", "arguments": ""}
        where = {"item_id": item["id"], "output_index": self._index}
        yield self._event("response.output_item.added", output_index=self._index, item=begun)
        yield self._event("response.function_call_arguments.delta", **where, delta=call.arguments)
        yield self._event("response.function_call_arguments.done", **where, arguments=call.arguments)
        yield self._event("response.output_item.done", output_index=self._index, item=item)

    @property
    def _index(self) -> int:
        return len(self._items) - 1

    def _text_event(self, name: str, **fields: Any) -> bytes:
        return self._event(name, item_id=self._items[-1]["id"], output_index=self._index, content_index=0, **fields)

    def _event(self, name: str, **fields: Any) -> bytes:
        event = {"type": name, "sequence_number": self._number, **fields}
        self._number += 1
        return sse(event, name)


def _ended(cut: bool) -> Literal["completed", "incomplete"]:
    return "incomplete" if cut else "completed"


def _text_part(text: str) -> dict[str, Any]:
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}
