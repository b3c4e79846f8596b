"""A message as Anthropic's API writes it: as a whole, and as the events of a stream."""

import json
import secrets
from collections.abc import AsyncIterator
from typing import Any

from pbkv_cluster.core.text.chat_message import FunctionCall
from pbkv_cluster.core.usage import Usage
from pbkv_cluster.gateway.http.anthropic.errors import anthropic_error
from pbkv_cluster.gateway.http.generation.parts import CallPart, Ended, Part, Started, TextPart
from pbkv_cluster.gateway.http.generation.whole import Choice
from pbkv_cluster.gateway.http.wire.problems import problem_of
from pbkv_cluster.gateway.http.wire.replies import sse

_STOP_UNKNOWN: dict[str, Any] = {"stop_reason": None, "stop_sequence": None}


def error_event(error: Exception) -> bytes:
    """An error after the answer has begun."""
    return sse(anthropic_error(problem_of(error), ""), "error")


class MessageWriter:
    """Writes one answer."""

    def __init__(self, model: str) -> None:
        self._head = {"id": f"msg_{secrets.token_hex(12)}", "type": "message", "role": "assistant", "model": model}

    def whole(self, choices: list[Choice]) -> dict[str, Any]:
        """The message."""
        (choice,) = choices
        blocks: list[dict[str, Any]] = [{"type": "text", "text": choice.text}] if choice.text or not choice.calls else []
        blocks += [_tool_use(call, json.loads(call.arguments)) for call in choice.calls]
        return {**self._head, "content": blocks, **_stop(choice.end), "usage": _usage_json(choice.end.usage)}

    async def stream(self, parts: AsyncIterator[Part]) -> AsyncIterator[bytes]:
        """Its events."""
        index, is_open = 0, False  # of the content block
        async for part in parts:
            match part:
                case Started():
                    usage = {"input_tokens": part.prompt_tokens, "output_tokens": 0}
                    message: dict[str, Any] = {
                        **self._head,
                        "content": [],
                        "stop_reason": None,
                        "stop_sequence": None,
                        "usage": usage,
                    }
                    yield _event("message_start", message=message)
                case TextPart():
                    if not is_open:
                        yield _event("content_block_start", index=index, content_block={"type": "text", "text": ""})
                        is_open = True
                    yield _event("content_block_delta", index=index, delta={"type": "text_delta", "text": part.text})
                case CallPart():
                    if is_open:
                        yield _event("content_block_stop", index=index)
                        index, is_open = index + 1, False
                    delta = {"type": "input_json_delta", "partial_json": part.call.arguments}
                    yield _event("content_block_start", index=index, content_block=_tool_use(part.call, {}))
                    yield _event("content_block_delta", index=index, delta=delta)
                    yield _event("content_block_stop", index=index)
                    index += 1
                case Ended():
                    if is_open:
                        yield _event("content_block_stop", index=index)
                    yield _event("message_delta", delta=_stop(part), usage=_usage_json(part.usage))
                    yield _event("message_stop")


def _event(name: str, **fields: Any) -> bytes:
    return sse({"type": name, **fields}, name)


def _tool_use(call: FunctionCall, arguments: Any) -> dict[str, Any]:
    return {"type": "tool_use", "id": call.call_id, "name": call.name, "input": arguments}


def _stop(ended: Ended) -> dict[str, Any]:
    if ended.cut:
        reason = "max_tokens"
    elif ended.calls:
        reason = "tool_use"
    else:
        reason = "stop_sequence" if ended.stop else "end_turn"
    return {"stop_reason": reason, "stop_sequence": ended.stop or None}


def _usage_json(usage: Usage) -> dict[str, int]:
    """Input tokens are those that the cache did not deliver."""
    cached = sum(usage.delivered.values())
    return {
        "input_tokens": usage.prompt_tokens - cached,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": cached,
        "output_tokens": usage.generated_tokens,
    }
