"""/v1/prefetch: has what is cached of a prompt, or of a workflow, loaded before its step; as `Prefetch` over gRPC."""

from collections.abc import Awaitable, Callable
from typing import Annotated, Any

from pydantic import ConfigDict, Field
from starlette.requests import Request
from starlette.responses import Response

from pbkv_cluster.core.tokens import pack
from pbkv_cluster.gateway.http.generation.counting import Counter
from pbkv_cluster.gateway.http.openai.chat_request import Message, Tool
from pbkv_cluster.gateway.http.openai.served_model import ServedModel
from pbkv_cluster.gateway.http.openai.tokenize import prompt_of
from pbkv_cluster.gateway.http.sessions.hints import read_hints
from pbkv_cluster.gateway.http.tools.conversation import ToolWriter
from pbkv_cluster.gateway.http.wire.body import Body, BodyReader, Items, parse
from pbkv_cluster.gateway.http.wire.replies import json_reply
from pbkv_cluster.gateway.http.wire.schemas import COUNT, TEXT, record
from pbkv_cluster.rpc.convert import tiers_from_wire
from pbkv_cluster.rpc.v1 import store_pb2, types_pb2

PREFETCHED = record(
    loaded_tokens=COUNT,
    resident_tokens=COUNT,
    staged_tokens=COUNT,
    tokens=COUNT,
    tiers=record(),
    leased_tokens=COUNT,
    lease_id=TEXT,
)

AskCaches = Callable[[store_pb2.PrefetchRequest, Any], Awaitable[store_pb2.PrefetchResponse]]


class PrefetchBody(Body):
    """Body of /v1/prefetch: a prompt or messages; neither: what the workflow has used that the headers name."""

    model_config = ConfigDict(
        json_schema_extra={
            "anyOf": [{"properties": {"messages": {"type": "null"}}}, {"properties": {"prompt": {"type": "null"}}}],
        },
    )

    model: str | None = None
    prompt: str | None = None
    messages: Annotated[Items[Message], Field(min_length=1)] | None = None
    tools: Items[Tool] | None = None
    within_s: Annotated[float, Field(ge=0)] | None = None


class Prefetch:
    """Serves prefetches."""

    def __init__(self, counter: Counter, tools: ToolWriter, bodies: BodyReader, model: ServedModel, ask: AskCaches) -> None:
        """Args:
        counter: tokenises prompts.
        tools: writes conversations.
        bodies: reads requests.
        model: that is served.
        ask: the gateway's `Prefetch`.
        """
        self._counter = counter
        self._tools = tools
        self._bodies = bodies
        self._model = model
        self._ask = ask

    async def serve(self, request: Request) -> Response:
        """Raises:
        PbkvError: the request is wrong, the workflow is not open, or no worker is reachable.
        """
        body = await self._bodies.read(request)
        asked = await parse(PrefetchBody, body)
        if asked.model is not None:
            self._model.check(asked.model)
        hints = read_hints(request.headers)
        prompt = None
        if asked.prompt is not None or asked.messages is not None:
            read = prompt_of(asked.prompt, asked.messages, asked.tools, self._tools)
            found = await self._counter.tokenize(request, read, len(body))
            prompt = types_pb2.Prompt(token_ids=types_pb2.PackedTokens(data=pack(found.token_ids)))
        wanted = store_pb2.PrefetchRequest(
            prompt=prompt,
            tenant=hints.tenant,
            workflow_id=hints.workflow,
            agent_id="" if prompt is not None else hints.agent,
            within_s=asked.within_s or 0.0,
        )
        done = await self._ask(wanted, None)
        return json_reply(
            {
                "loaded_tokens": done.loaded_tokens,
                "resident_tokens": done.resident_tokens,
                "staged_tokens": done.staged_tokens,
                "tokens": done.tokens,
                "tiers": {str(tier): tokens for tier, tokens in tiers_from_wire(done.tiers).items()},
                "leased_tokens": done.leased_tokens,
                "lease_id": done.lease_id,
            }
        )
