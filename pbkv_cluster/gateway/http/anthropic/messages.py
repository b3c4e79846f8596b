"""/v1/messages and /v1/messages/count_tokens."""

from starlette.requests import Request
from starlette.responses import Response

from pbkv_cluster.gateway.http.anthropic.events import MessageWriter, error_event
from pbkv_cluster.gateway.http.anthropic.messages_request import CountRequest, MessagesRequest
from pbkv_cluster.gateway.http.generation.answering import Answering
from pbkv_cluster.gateway.http.generation.ask import Ask
from pbkv_cluster.gateway.http.generation.counting import Counter
from pbkv_cluster.gateway.http.openai import fields
from pbkv_cluster.gateway.http.openai.served_model import ServedModel
from pbkv_cluster.gateway.http.sessions.hints import read_hints
from pbkv_cluster.gateway.http.tools.conversation import ToolWriter
from pbkv_cluster.gateway.http.wire.body import BodyReader, parse
from pbkv_cluster.gateway.http.wire.replies import json_reply


class Messages:
    """Serves messages."""

    def __init__(
        self, answering: Answering, counter: Counter, tools: ToolWriter, bodies: BodyReader, model: ServedModel
    ) -> None:
        self._answering = answering
        self._counter = counter
        self._tools = tools
        self._bodies = bodies
        self._model = model

    async def serve(self, request: Request) -> Response:
        """Raises:
        PbkvError: the request is wrong, or a step could not be run.
        """
        body = await self._bodies.read(request)
        asked = await parse(MessagesRequest, body)
        self._model.check(asked.model)
        ask = _to_ask(asked, dict(request.headers), len(body))
        return await self._answering.answer(request, ask, MessageWriter(self._model.name), error_event, asked.stream)

    async def count(self, request: Request) -> Response:
        """Raises:
        PbkvError: the request is wrong, or no worker is reachable.
        """
        body = await self._bodies.read(request)
        asked = await parse(CountRequest, body)
        self._model.check(asked.model)
        found = await self._counter.tokenize(request, self._tools.prompt(asked.conversation(), asked.offered()), len(body))
        return json_reply({"input_tokens": len(found.token_ids)})


def _to_ask(asked: MessagesRequest, headers: dict[str, str], size_bytes: int) -> Ask:
    return Ask(
        sampling=fields.sampling(asked.max_tokens, asked.temperature, asked.top_p, None, asked.stop_sequences),
        size_bytes=size_bytes,
        hints=read_hints(headers, asked.metadata, "", fields.Nvext.priority(asked.nvext)),
        messages=asked.conversation(),
        tools=asked.offered(),
        forced=asked.forced_call(),
        parallel_calls=not (asked.tool_choice and asked.tool_choice.disable_parallel_tool_use),
    )
