"""Answers a request with a generation: as a whole or as a stream, for as long as its client is there."""

from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from urllib.parse import quote

from starlette.requests import Request
from starlette.responses import Response

from pbkv_cluster.gateway.http.generation.ask import Ask
from pbkv_cluster.gateway.http.generation.generation import Generations
from pbkv_cluster.gateway.http.generation.parts import Part, Started
from pbkv_cluster.gateway.http.generation.whole import Choice, collect
from pbkv_cluster.gateway.http.sessions import hints
from pbkv_cluster.gateway.http.wire.replies import EventStream, json_reply, until_gone

STEP = "x-pbkv-step"
_PRINTABLE = "".join(map(chr, range(0x21, 0x7F))).replace("%", "")


@dataclass(frozen=True, slots=True)
class Answering:
    """Runs generations for requests, and cancels them when their clients go away."""

    generations: Generations

    async def whole(self, request: Request, ask: Ask, render: Callable[[list[Choice]], object]) -> Response:
        """The answer as one JSON value.

        Raises:
            PbkvError: the request is wrong, or a step could not be run.
            ClientGone: the client went away.
        """
        generation = self.generations.begin(ask)
        try:
            choices = await until_gone(request.receive, collect(generation.parts(), ask.choices))
        finally:
            generation.close()
        return json_reply(render(choices), headers=_headers(choices[0].started))

    async def stream(
        self,
        request: Request,
        ask: Ask,
        render: Callable[[AsyncIterator[Part]], AsyncIterator[bytes]],
        on_error: Callable[[Exception], bytes],
    ) -> Response:
        """The answer as server-sent events. Errors before the first part are raised, so that they have a status of their own.

        Raises:
            PbkvError: the request is wrong, or a step could not be run.
            ClientGone: the client went away.
        """
        generation = self.generations.begin(ask)
        parts = generation.parts()
        try:
            first = await until_gone(request.receive, _first(parts))
        except BaseException:
            generation.close()
            raise
        headers = _headers(first if isinstance(first, Started) else None)
        return EventStream(render(_again(first, parts)), on_error, generation.close, headers)


async def _first(parts: AsyncIterator[Part]) -> Part:
    return await anext(parts)


async def _again(first: Part, parts: AsyncIterator[Part]) -> AsyncIterator[Part]:
    yield first
    async for part in parts:
        yield part


def _headers(started: Started | None) -> dict[str, str]:
    """What the client is told of its step. Characters that a header cannot hold are percent-encoded."""
    if started is None:
        return {}
    return {
        hints.WORKFLOW: quote(started.workflow, safe=_PRINTABLE),
        hints.AGENT: quote(started.agent, safe=_PRINTABLE),
        STEP: str(started.step),
    }
