"""/v1/responses: the part of it that agents use. Responses are not stored; a client sends the whole conversation each time."""

import secrets
import time
from collections.abc import AsyncIterator
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from pbkv_cluster.core.usage import Usage
from pbkv_cluster.gateway.http.generation.answering import Answering
from pbkv_cluster.gateway.http.generation.ask import Ask
from pbkv_cluster.gateway.http.generation.parts import Part
from pbkv_cluster.gateway.http.generation.whole import Choice
from pbkv_cluster.gateway.http.openai import fields
from pbkv_cluster.gateway.http.openai.chat_request import forced_call, offered
from pbkv_cluster.gateway.http.openai.response_events import ResponseEvents, Status, call_item, message_item
from pbkv_cluster.gateway.http.openai.responses_request import ResponsesRequest
from pbkv_cluster.gateway.http.openai.served_model import ServedModel
from pbkv_cluster.gateway.http.openai.usage import cached_tokens
from pbkv_cluster.gateway.http.sessions.hints import read_hints
from pbkv_cluster.gateway.http.wire.body import BodyReader, parse
from pbkv_cluster.gateway.http.wire.problems import Problem, problem_of


class Responses:
    """Serves responses."""

    def __init__(self, answering: Answering, bodies: BodyReader, model: ServedModel) -> None:
        self._answering = answering
        self._bodies = bodies
        self._model = model

    async def serve(self, request: Request) -> Response:
        """Raises:
        PbkvError: the request is wrong, or a step could not be run.
        """
        body = await self._bodies.read(request)
        asked = await parse(ResponsesRequest, body)
        self._model.check(asked.model)
        ask = _to_ask(asked, dict(request.headers), len(body))
        answer = _Answer(asked)
        return await self._answering.answer(request, ask, answer, answer.error_events, asked.stream)


def _to_ask(asked: ResponsesRequest, headers: dict[str, str], size_bytes: int) -> Ask:
    return Ask(
        sampling=fields.sampling(asked.max_output_tokens or fields.ANY_LENGTH, asked.temperature, asked.top_p, None, None),
        size_bytes=size_bytes,
        hints=read_hints(headers, asked.metadata, asked.prompt_cache_key or "", fields.Nvext.priority(asked.nvext)),
        messages=asked.messages(),
        tools=offered(asked.offered(), asked.tool_choice),
        forced=forced_call(asked.offered(), asked.tool_choice),
        parallel_calls=asked.parallel_tool_calls is not False,
    )


class _Answer:
    """One response, as it is written."""

    def __init__(self, asked: ResponsesRequest) -> None:
        self._head: dict[str, Any] = {
            "id": f"resp_{secrets.token_hex(16)}",
            "object": "response",
            "created_at": int(time.time()),
            "model": asked.model,
            "instructions": asked.instructions,
            "metadata": asked.metadata or {},
            "max_output_tokens": asked.max_output_tokens,
            "parallel_tool_calls": asked.parallel_tool_calls is not False,
            "temperature": 1.0 if asked.temperature is None else asked.temperature,
            "top_p": 1.0 if asked.top_p is None else asked.top_p,
            "tool_choice": asked.tool_choice or "auto",
            "tools": [tool.model_dump(by_alias=True) for tool in asked.tools or ()],
            "text": {"format": {"type": "text"}},
            "truncation": "disabled",
            "previous_response_id": None,
        }
        self._events = ResponseEvents(self._response)

    def whole(self, choices: list[Choice]) -> dict[str, Any]:
        (choice,) = choices
        cut = choice.end.cut
        items = [message_item(choice.text, cut=cut and not choice.calls)] if choice.text or not choice.calls else []
        items += map(call_item, choice.calls)
        return self._response(items, "incomplete" if cut else "completed", choice.end.usage)

    async def stream(self, parts: AsyncIterator[Part]) -> AsyncIterator[bytes]:
        async for part in parts:
            for event in self._events.of(part):
                yield event

    def error_events(self, error: Exception) -> bytes:
        """What ends a stream that cannot be completed."""
        return b"".join(self._events.failed(problem_of(error)))

    def _response(
        self,
        items: list[dict[str, Any]],
        status: Status = "in_progress",
        usage: Usage | None = None,
        problem: Problem | None = None,
    ) -> dict[str, Any]:
        """A `Snapshot`."""
        return {
            **self._head,
            "status": status,
            "error": None if problem is None else _error_json(problem),
            "incomplete_details": {"reason": "max_output_tokens"} if status == "incomplete" else None,
            "output": items,
            "usage": None if usage is None else _usage_json(usage),
        }


def _error_json(problem: Problem) -> dict[str, Any]:
    """With one of the few codes that a response may have."""
    return {"code": "rate_limit_exceeded" if problem.status == 429 else "server_error", "message": problem.message}


def _usage_json(usage: Usage) -> dict[str, Any]:
    return {
        "input_tokens": usage.prompt_tokens,
        "input_tokens_details": {"cached_tokens": cached_tokens(usage), "cache_write_tokens": 0},
        "output_tokens": usage.generated_tokens,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": usage.prompt_tokens + usage.generated_tokens,
    }
