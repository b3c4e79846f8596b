"""/v1/chat/completions."""

import secrets
import time
from collections.abc import AsyncIterator
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from pbkv_cluster.core.text.chat_message import FunctionCall
from pbkv_cluster.gateway.http.generation.answering import Answering
from pbkv_cluster.gateway.http.generation.ask import Ask
from pbkv_cluster.gateway.http.generation.parts import CallPart, Ended, Part, Started, TextPart
from pbkv_cluster.gateway.http.generation.whole import Choice
from pbkv_cluster.gateway.http.openai import fields
from pbkv_cluster.gateway.http.openai.chat_request import ChatRequest, forced_call, offered
from pbkv_cluster.gateway.http.openai.logprobs import chat_logprobs
from pbkv_cluster.gateway.http.openai.served_model import ServedModel
from pbkv_cluster.gateway.http.openai.usage import usage_json
from pbkv_cluster.gateway.http.sessions.hints import read_hints
from pbkv_cluster.gateway.http.wire.body import BodyReader, parse
from pbkv_cluster.gateway.http.wire.endpoint import openai_error
from pbkv_cluster.gateway.http.wire.problems import problem_of
from pbkv_cluster.gateway.http.wire.replies import sse

DONE = b"data: [DONE]\n\n"


class ChatCompletions:
    """Serves chat completions."""

    def __init__(self, answering: Answering, bodies: BodyReader, model: ServedModel) -> None:
        self._answering = answering
        self._bodies = bodies
        self._model = model

    async def serve(self, request: Request) -> Response:
        """Raises:
        PbkvError: the request is wrong, or a step could not be run.
        """
        body = await self._bodies.read(request)
        asked = await parse(ChatRequest, body)
        self._model.check(asked.model)
        ask = to_ask(asked, dict(request.headers), len(body))
        answer = _Answer(self._model.name, with_usage=fields.StreamOptions.with_usage(asked.stream_options))
        return await self._answering.answer(request, ask, answer, error_event, asked.stream)


def to_ask(asked: ChatRequest, headers: dict[str, str], size_bytes: int) -> Ask:
    """Raises:
    InvalidArgument: a field has a value that is not supported.
    """
    asked.check()
    tools = [tool.plain() for tool in asked.tools or ()]
    max_tokens = asked.max_completion_tokens or asked.max_tokens or fields.ANY_LENGTH
    return Ask(
        sampling=fields.sampling(
            max_tokens, asked.temperature, asked.top_p, asked.seed, asked.stop, asked.ignore_eos, asked.wanted_logprobs()
        ),
        size_bytes=size_bytes,
        hints=read_hints(headers, asked.metadata, asked.prompt_cache_key or "", fields.Nvext.priority(asked.nvext)),
        messages=tuple(message.plain(position) for position, message in enumerate(asked.messages)),
        tools=offered(tools, asked.tool_choice),
        forced=forced_call(tools, asked.tool_choice),
        choices=asked.n or 1,
        parallel_calls=asked.parallel_tool_calls is not False,
    )


def error_event(error: Exception) -> bytes:
    """An error after the answer has begun."""
    return sse(openai_error(problem_of(error), "")) + DONE


def finish_reason(ended: Ended) -> str:
    """Why an answer ended, in OpenAI's words."""
    if ended.cut:
        return "length"
    return "tool_calls" if ended.calls else "stop"


class _Answer:
    """One answer, as it is written."""

    def __init__(self, model: str, *, with_usage: bool) -> None:
        """`with_usage`: see `StreamOptions`."""
        self._with_usage = with_usage
        self._head = {"id": f"chatcmpl-{secrets.token_hex(12)}", "created": int(time.time()), "model": model}

    def whole(self, choices: list[Choice]) -> dict[str, Any]:
        return {
            **self._head,
            "object": "chat.completion",
            "choices": [
                {
                    "index": index,
                    "message": _message(choice),
                    "logprobs": chat_logprobs(choice.tokens),
                    "finish_reason": finish_reason(choice.end),
                }
                for index, choice in enumerate(choices)
            ],
            "usage": usage_json(choice.end.usage for choice in choices),
        }

    async def stream(self, parts: AsyncIterator[Part]) -> AsyncIterator[bytes]:
        ended: dict[int, Ended] = {}
        async for part in parts:
            match part:
                case Started():
                    yield self._chunk(part.choice, {"role": "assistant", "content": ""})
                case TextPart():
                    yield self._chunk(part.choice, {"content": part.text}, logprobs=chat_logprobs(part.tokens))
                case CallPart():
                    yield self._chunk(part.choice, {"tool_calls": [{"index": part.index, **call_json(part.call)}]})
                case Ended():
                    ended[part.choice] = part
                    yield self._chunk(part.choice, {}, finish_reason(part))
        if self._with_usage:
            usage = usage_json(ended[choice].usage for choice in sorted(ended))
            yield sse({**self._head, "object": "chat.completion.chunk", "choices": [], "usage": usage})
        yield DONE

    def _chunk(
        self, index: int, delta: dict[str, Any], reason: str | None = None, logprobs: dict[str, Any] | None = None
    ) -> bytes:
        choice = {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": reason}
        chunk = {**self._head, "object": "chat.completion.chunk", "choices": [choice]}
        return sse({**chunk, "usage": None} if self._with_usage else chunk)


def _message(choice: Choice) -> dict[str, Any]:
    message: dict[str, Any] = {"role": "assistant", "content": choice.text, "refusal": None}
    if choice.calls:
        message["content"] = choice.text or None
        message["tool_calls"] = [call_json(call) for call in choice.calls]
    return message


def call_json(call: FunctionCall) -> dict[str, Any]:
    """A tool call as an answer has it."""
    return {"id": call.call_id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
