"""One stream of events to the predictor: what was sent is kept until the predictor says that it has taken it."""

import asyncio
import contextlib
from collections import deque
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import grpc
from grpc import aio

from pbkv_cluster.core.background import cancel
from pbkv_cluster.core.errors import Unavailable
from pbkv_cluster.rpc.v1 import predictor_pb2, predictor_pb2_grpc

if TYPE_CHECKING:
    from pbkv_cluster.rpc.v1.predictor_pb2_grpc import PredictorServiceAsyncStub

WINDOW = 2048  # events sent and not acknowledged
_ASK_EVENTS = 512  # sent, after which the predictor is asked how far it is
_ASK_S = 0.5  # so often it is asked in any case
_DEADLINE_S = 2.0  # for an answer, and for a request to leave
# Whatever else a batch fails with, it would fail with again.
_AWAY = frozenset({grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.CANCELLED})
_NO_STATUS = "Internal error from Core"  # details of grpc.aio's own INTERNAL: a write failed before the server's status came


class Refused(Exception):
    """The predictor refuses a batch; the message is its status and why."""


class EventStream:
    """Sends batches, in order, until the stream ends."""

    def __init__(self, channel: aio.Channel, on_news: Callable[[], None]) -> None:
        """`on_news` is called when the predictor has answered, and when the stream has ended."""
        stub: PredictorServiceAsyncStub = predictor_pb2_grpc.PredictorServiceStub(channel)
        self._call = stub.StreamEvents()
        self._on_news = on_news
        self._batches: deque[Sequence[predictor_pb2.WorkflowEvent]] = deque()  # not acknowledged
        self._sent = 0  # events
        self.acknowledged = 0  # events of whole batches
        self._loop = asyncio.get_running_loop()
        self._ask_at = self._loop.time()
        self._ask_behind = _ASK_EVENTS  # events sent
        self._overdue_at: float | None = None  # None: nothing is asked
        self.answered = False  # ever
        self._reading = asyncio.create_task(self._read(), name="answers about events")

    @property
    def is_full(self) -> bool:
        """Whether to wait for an answer before more is sent."""
        return self._sent - self.acknowledged >= WINDOW

    @property
    def patience_s(self) -> float:
        """Seconds in which `send` is to be called, with or without events."""
        return (self._ask_at if self._overdue_at is None else self._overdue_at) - self._loop.time()

    async def send(self, events: Sequence[predictor_pb2.WorkflowEvent]) -> None:
        """Sends a batch, if there are events, and asks how far the predictor is, if it is time.

        Raises:
            Refused: the first batch that is not acknowledged; the stream has ended.
            Unavailable: the predictor, or the way to it, is gone, or it does not answer.
        """
        if events:
            self._batches.append(events)
            self._sent += len(events)
            await self._write(events)
        if self._overdue_at is None and (self._sent >= self._ask_behind or self.patience_s <= 0):
            self._ask_at = self._loop.time() + _ASK_S
            self._ask_behind = self._sent + _ASK_EVENTS
            self._overdue_at = self._loop.time() + _DEADLINE_S
            await self._write(())

    async def finish(self) -> None:
        """Ends the stream once the predictor has taken all.

        Raises:
            Refused, Unavailable: as `send`.
        """
        # If it has ended already, reading tells why.
        with contextlib.suppress(aio.AioRpcError, asyncio.InvalidStateError):
            await self._call.done_writing()
        await asyncio.wait([self._reading], timeout=_DEADLINE_S)
        if not self._reading.done() or self._reading.exception() is not None:
            self.check()
            raise Unavailable("the predictor does not answer")
        self.acknowledged, self._batches = self._sent, deque()

    def check(self) -> None:
        """Raises what `send` would."""
        if self._reading.done():
            try:
                self._reading.result()
            except aio.AioRpcError as error:
                if error.code() not in _AWAY and error.details() != _NO_STATUS:
                    raise Refused(f"{error.code().name}: {error.details()}") from error
            raise Unavailable("the predictor has ended the stream")
        if self._overdue_at is not None and self._loop.time() >= self._overdue_at:
            raise Unavailable("the predictor does not answer")

    async def close(self) -> deque[Sequence[predictor_pb2.WorkflowEvent]]:
        """Ends the stream; the batches that were not acknowledged."""
        self._call.cancel()
        await cancel(self._reading)
        await asyncio.gather(self._reading, return_exceptions=True)  # what it ended with was told, or no longer matters
        return self._batches

    async def _write(self, events: Sequence[predictor_pb2.WorkflowEvent]) -> None:
        try:
            async with asyncio.timeout(_DEADLINE_S):
                try:
                    await self._call.write(predictor_pb2.ReportEventsRequest(events=events))
                except (aio.AioRpcError, asyncio.InvalidStateError):
                    await asyncio.wait([self._reading])  # which hears all that was answered, and then why it ended
        except TimeoutError:
            raise Unavailable("the predictor takes no events") from None
        self.check()

    async def _read(self) -> None:
        try:
            async for answer in self._call:
                taken = answer.accepted + answer.ignored
                while self._batches and self.acknowledged + len(self._batches[0]) <= taken:
                    self.acknowledged += len(self._batches.popleft())
                self._overdue_at = None
                self.answered = True
                self._on_news()
        finally:
            self._on_news()
