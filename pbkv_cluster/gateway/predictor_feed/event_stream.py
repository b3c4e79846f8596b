"""One stream of events to the predictor. Events are kept until the predictor acknowledges them."""

import asyncio
import contextlib
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING

import grpc
from grpc import aio

from pbkv_cluster.core.background import cancel
from pbkv_cluster.rpc.v1 import predictor_pb2, predictor_pb2_grpc

if TYPE_CHECKING:
    from pbkv_cluster.rpc.v1.predictor_pb2_grpc import PredictorServiceAsyncStub

Events = Sequence[predictor_pb2.WorkflowEvent]

# Any other status is the predictor's verdict on a batch, and would be the same if the batch were sent again.
_CONNECTION_LOST = frozenset({grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.CANCELLED})
_NO_STATUS = "Internal error from Core"  # details of grpc.aio's own INTERNAL: a write failed before the server's status arrived


class StreamState(Enum):
    """State of a stream. All but OPEN are final.

    | state | meaning | what the feed does |
    |---|---|---|
    | OPEN | the predictor takes events | sends more |
    | FINISHED | `finish` was called, and every event is acknowledged | ends |
    | REFUSED | the predictor rejected the first batch that is not acknowledged | resends its events singly, drops one sent so |
    | LOST | the predictor or the connection is gone, or does not answer in time | opens a new stream after a pause |

    After REFUSED a new stream follows at once. Either repeats what was not acknowledged.
    """

    OPEN = "open"
    FINISHED = "finished"
    REFUSED = "refused"
    LOST = "lost"


@dataclass(frozen=True, slots=True)
class StreamLimits:
    """Bounds of a stream."""

    batch_events: int = 512  # in one request
    batch_bytes: int = 4 << 20  # in one request, unless it holds one event only
    window_events: int = 2048  # sent and not acknowledged
    window_bytes: int = 32 << 20
    ack_events: int = 512  # sent, after which the predictor is asked for an acknowledgement
    ack_interval_s: float = 0.5  # after which it is asked in any case
    deadline_s: float = 2.0  # for an acknowledgement, and for a request to leave


class EventStream:
    """Sends batches, in order, until the stream ends."""

    def __init__(self, channel: aio.Channel, limits: StreamLimits, on_change: Callable[[], None]) -> None:
        """`on_change` is called when the predictor has answered, and when the stream has ended."""
        stub: PredictorServiceAsyncStub = predictor_pb2_grpc.PredictorServiceStub(channel)
        self._limits = limits
        self._call = stub.StreamEvents()
        self._on_change = on_change
        self._sent_events = 0
        self.unacknowledged: deque[Events] = deque()  # batches
        self.acknowledged_events = 0  # of whole batches
        self._window_bytes = 0  # of the batches that are not acknowledged
        self.instance: int | None = None  # of the predictor; None: it has not answered yet
        self._finished = False
        self._blocked = False  # a request could not be written in time
        self._loop = asyncio.get_running_loop()
        self._ask_at = self._loop.time()
        self._ask_after_events = limits.ack_events
        self._answer_due_at: float | None = None  # None: no question is open
        self._reading = asyncio.create_task(self._read(), name="acknowledgements of events")

    @property
    def state(self) -> StreamState:
        return self._status()[0]

    @property
    def problem(self) -> str:
        """Why the stream is REFUSED or LOST; empty otherwise."""
        return self._status()[1]

    @property
    def is_full(self) -> bool:
        """Whether more may be sent only after the next acknowledgement."""
        events = self._sent_events - self.acknowledged_events
        return events >= self._limits.window_events or self._window_bytes >= self._limits.window_bytes

    @property
    def send_within_s(self) -> float:
        """Seconds until `send` must be called again, with or without events."""
        return (self._ask_at if self._answer_due_at is None else self._answer_due_at) - self._loop.time()

    async def send(self, events: Events) -> StreamState:
        """Sends a batch, unless it is empty, and asks for an acknowledgement when it is time to."""
        if events:
            self.unacknowledged.append(events)
            self._sent_events += len(events)
            self._window_bytes += size_bytes(events)
            await self._write(events)
        if self.state is StreamState.OPEN and self._should_ask():
            self._ask_at = self._loop.time() + self._limits.ack_interval_s
            self._ask_after_events = self._sent_events + self._limits.ack_events
            self._answer_due_at = self._loop.time() + self._limits.deadline_s
            await self._write(())
        return self.state

    async def finish(self) -> StreamState:
        """Ends the stream once the predictor has taken all events."""
        # If the stream has ended already, reading tells why.
        with contextlib.suppress(aio.AioRpcError, asyncio.InvalidStateError):
            await self._call.done_writing()
        await asyncio.wait([self._reading], timeout=self._limits.deadline_s)
        if not self._reading.done():
            self._blocked = True
        elif not self._reading.cancelled() and self._reading.exception() is None:
            self._finished = True
            self.acknowledged_events = self._sent_events
            self.unacknowledged.clear()
        return self.state

    async def close(self) -> None:
        """Ends the stream at once. `unacknowledged` says what has to be sent again."""
        self._call.cancel()
        await cancel(self._reading)
        await asyncio.gather(self._reading, return_exceptions=True)  # its error was reported as `problem`, or no longer matters

    def _status(self) -> tuple[StreamState, str]:
        if self._finished:
            return StreamState.FINISHED, ""
        if self._reading.done():
            error = None if self._reading.cancelled() else self._reading.exception()
            if error is None:
                return StreamState.LOST, "the predictor has ended the stream"
            if not isinstance(error, aio.AioRpcError):
                raise error
            if error.code() in _CONNECTION_LOST or error.details() == _NO_STATUS:
                return StreamState.LOST, error.details() or error.code().name
            return StreamState.REFUSED, f"{error.code().name}: {error.details()}"
        if self._blocked or (self._answer_due_at is not None and self._loop.time() >= self._answer_due_at):
            return StreamState.LOST, "the predictor does not answer"
        return StreamState.OPEN, ""

    def _should_ask(self) -> bool:
        return self._answer_due_at is None and (self._sent_events >= self._ask_after_events or self.send_within_s <= 0)

    async def _write(self, events: Events) -> None:
        try:
            async with asyncio.timeout(self._limits.deadline_s):
                try:
                    await self._call.write(predictor_pb2.ReportEventsRequest(events=events))
                except (aio.AioRpcError, asyncio.InvalidStateError):
                    await asyncio.wait(
                        [self._reading]
                    )  # it takes the answers that are left, and then learns why the stream ended
        except TimeoutError:
            self._blocked = True

    async def _read(self) -> None:
        try:
            async for answer in self._call:
                taken = answer.accepted + answer.ignored
                while self.unacknowledged and self.acknowledged_events + len(self.unacknowledged[0]) <= taken:
                    batch = self.unacknowledged.popleft()
                    self.acknowledged_events += len(batch)
                    self._window_bytes -= size_bytes(batch)
                self._answer_due_at = None
                self.instance = answer.instance
                self._on_change()
        finally:
            self._on_change()


def size_bytes(events: Events) -> int:
    """Bytes of events on the wire."""
    return sum(event.ByteSize() for event in events)
