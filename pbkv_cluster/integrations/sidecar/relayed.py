"""An engine's answer on its way to the client, byte for byte."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from pbkv_cluster.core.errors import PbkvError
from pbkv_cluster.gateway.http.openai.chat import error_event
from pbkv_cluster.gateway.http.wire.replies import ClientGone, until_gone
from pbkv_cluster.integrations.sidecar.engines.upstream import Incoming
from pbkv_cluster.integrations.sidecar.workflow.steps import Outcome

_WRITE_S = 60.0  # that a client may take to read what was sent

OnEnd = Callable[[Outcome], Awaitable[None]]


def is_event_stream(answer: Incoming) -> bool:
    """Whether an answer is a stream of server-sent events."""
    return answer.header(b"content-type").startswith(b"text/event-stream")


class Relayed(Response):
    """Sends what an engine answers. A client that goes away, or does not read, ends the engine's work."""

    def __init__(self, answer: Incoming, on_piece: Callable[[bytes], None], on_end: OnEnd, headers: Mapping[str, str]) -> None:
        """Args:
        answer: of the engine; closed at the end.
        on_piece: sees each piece of the body after it was sent.
        on_end: called once, however the answer has ended.
        headers: that the client gets besides.
        """
        super().__init__(None, answer.status)
        added = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in headers.items()]
        ours = {name for name, _ in added}  # an engine that is a gateway of ours has such headers, too
        self.raw_headers = [*((name, value) for name, value in answer.headers if name.lower() not in ours), *added]
        self._answer = answer
        self._on_piece = on_piece
        self._on_end = on_end

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        outcome = Outcome.CANCELLED
        try:
            await until_gone(receive, self._send_all(send))
            outcome = Outcome.FINISHED if self.status_code < 400 else Outcome.FAILED
        except (ClientGone, TimeoutError):
            pass
        except PbkvError:
            outcome = Outcome.FAILED
            if not is_event_stream(self._answer):
                raise  # the connection is closed, which is all that tells that the body is not complete
        finally:
            await self._answer.close()
            await self._on_end(outcome)

    async def _send_all(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        try:
            async for piece in self._answer.pieces():
                async with asyncio.timeout(_WRITE_S):
                    await send({"type": "http.response.body", "body": piece, "more_body": True})
                self._on_piece(piece)
        except PbkvError as error:
            if is_event_stream(self._answer):
                await send({"type": "http.response.body", "body": error_event(error), "more_body": False})
            raise
        await send({"type": "http.response.body", "body": b"", "more_body": False})


async def nothing(outcome: Outcome) -> None:
    """An `OnEnd` for what is no step."""
