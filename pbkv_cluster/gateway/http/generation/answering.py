"""Answers a request with a generation: as a whole or as a stream, for as long as its client is there."""

from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Protocol

from starlette.requests import Request
from starlette.responses import Response

from pbkv_cluster.gateway.http.generation.ask import Ask
from pbkv_cluster.gateway.http.generation.generation import Generations
from pbkv_cluster.gateway.http.generation.parts import Part, Started
from pbkv_cluster.gateway.http.generation.whole import Choice, collect
from pbkv_cluster.gateway.http.sessions.hints import answer_headers
from pbkv_cluster.gateway.http.wire.replies import EventStream, json_reply, until_gone


class Answer(Protocol):
    """Writes one answer in the words of an API."""

    def whole(self, choices: list[Choice]) -> object:
        """As one JSON value."""
        ...

    def stream(self, parts: AsyncIterator[Part]) -> AsyncIterator[bytes]:
        """As server-sent events."""
        ...


@dataclass(frozen=True, slots=True)
class Answering:
    """Runs generations for requests, and cancels them when their clients go away."""

    generations: Generations

    async def answer(
        self, request: Request, ask: Ask, answer: Answer, on_error: Callable[[Exception], bytes], stream: bool | None
    ) -> Response:
        """The answer, as a stream if that was asked for. Errors before its first part are raised: they have their own status.

        Args:
            request: that is answered.
            ask: what it asks for.
            answer: writes the answer.
            on_error: writes an error after the answer has begun.
            stream: whether it was asked for as a stream.

        Raises:
            PbkvError: the request is wrong, or a step could not be run.
            ClientGone: the client went away.
        """
        return await (self._stream(request, ask, answer, on_error) if stream else self._whole(request, ask, answer))

    async def _whole(self, request: Request, ask: Ask, answer: Answer) -> Response:
        generation = self.generations.begin(ask)
        try:
            choices = await until_gone(request.receive, collect(generation.parts(), ask.choices))
        finally:
            generation.close()
        return json_reply(answer.whole(choices), headers=_headers(choices[0].started))

    async def _stream(self, request: Request, ask: Ask, answer: Answer, on_error: Callable[[Exception], bytes]) -> Response:
        generation = self.generations.begin(ask)
        parts = generation.parts()
        try:
            first = await until_gone(request.receive, _first(parts))
        except BaseException:
            generation.close()
            raise
        headers = _headers(first if isinstance(first, Started) else None)
        return EventStream(answer.stream(_again(first, parts)), on_error, generation.close, headers)


async def _first(parts: AsyncIterator[Part]) -> Part:
    return await anext(parts)


async def _again(first: Part, parts: AsyncIterator[Part]) -> AsyncIterator[Part]:
    yield first
    async for part in parts:
        yield part


def _headers(started: Started | None) -> dict[str, str]:
    return {} if started is None else answer_headers(started.workflow, started.agent, started.step)
