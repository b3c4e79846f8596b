"""The caller's side of `RunSteps` and `SubmitSteps`: the steps that a server runs, all of them over one stream."""

import asyncio
import itertools
import logging
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Protocol

import grpc
from grpc import aio

from pbkv_cluster.core.background import cancel
from pbkv_cluster.core.errors import FailedPrecondition, ResourceExhausted
from pbkv_cluster.rpc.channel import MAX_MESSAGE_BYTES
from pbkv_cluster.rpc.v1 import types_pb2, worker_pb2, workflow_pb2

Request = type[worker_pb2.RunStepsRequest] | type[workflow_pb2.SubmitStepsRequest]
MAX_ACTIONS = 4096  # in one message
_MESSAGE_BYTES = 1 << 20  # of the steps that travel together, unless one is larger alone
_FRAME_BYTES = 1 << 10  # of a message besides its one step, at most
_ENDS_S = 1.0  # in which a server ends a stream that nothing is sent on any more
_LEAST_S = 1e-3  # of a limit: 0 would be none
_CODES = {code.value[0]: code for code in grpc.StatusCode}
_CANCEL = types_pb2.CallCancel()

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class CallEnd:
    """How a call has ended."""

    code: grpc.StatusCode
    details: str
    trailing: tuple[tuple[str, str], ...] = ()  # metadata that came with the status
    is_lost: bool = False  # the stream has ended before the call: the server, or the way to it, is gone


class StepCall(Protocol):
    """What takes the output of one step."""

    def take(self, event: Any) -> None:
        """An event has come: a message that is part of a larger one, which it would keep in memory."""
        ...

    def ended(self, end: CallEnd | None) -> None:
        """Nothing comes any more; None: the streams were closed."""
        ...


class StepStreams:
    """Where the steps of one server begin. A stream that has broken is replaced for the next step."""

    def __init__(self, open_stream: Callable[[], Any], request: Request) -> None:
        """Args:
        open_stream: makes the call of gRPC.
        request: the messages that are sent.
        """
        self._open = open_stream
        self._request = request
        self._connection: _Connection | None = None

    def begin(
        self, step: Any, call: StepCall, metadata: Sequence[tuple[str, str]] = (), timeout_s: float | None = None
    ) -> Callable[[], None]:
        """Sends a step; returns at once what cancels it, and `call` hears no more. It does no harm when repeated.

        Args:
            step: to run.
            call: takes its output.
            metadata: that a call of its own would have.
            timeout_s: seconds after which the server drops it; None: never.

        Raises:
            ResourceExhausted: it is too large for a message, which would end all others, too.
            FailedPrecondition: the stream belongs to another event loop.
        """
        begin = self._request.Begin(
            step=step,
            metadata=[types_pb2.Header(key=key, value=value) for key, value in metadata],
            timeout_s=0.0 if timeout_s is None else max(timeout_s, _LEAST_S),
        )
        if (size := begin.ByteSize()) > MAX_MESSAGE_BYTES - _FRAME_BYTES:
            raise ResourceExhausted(f"a step of {size:,} bytes is too large for a message")
        if self._connection is None or self._connection.has_ended:
            self._connection = _Connection(self._open(), self._request)
        self._connection.check_loop()
        return self._connection.begin(begin, call)

    async def close(self) -> None:
        """Ends the stream, and cancels its steps."""
        if self._connection is not None:
            await self._connection.close()


class _Connection:
    """One stream to a server."""

    def __init__(self, stream: Any, request: Request) -> None:
        self._stream = stream
        self._request = request
        self._numbers = itertools.count()
        self._calls: dict[int, StepCall] = {}  # by number
        # To be sent. As many bytes as the steps in flight have: what is cancelled before it was sent leaves.
        self._begins: dict[int, Any] = {}  # by number of the call, in order
        self._cancels: list[int] = []  # of calls that were sent
        self._wake = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        self.has_ended = False
        self._is_closing = False
        self._reading = asyncio.create_task(self._read(), name="output of steps")
        self._writing = asyncio.create_task(self._write(), name="steps to a server")

    def check_loop(self) -> None:
        """Raises:
        FailedPrecondition: another event loop runs, in which nothing would wake the stream.
        """
        if asyncio.get_running_loop() is not self._loop:
            raise FailedPrecondition("the connection belongs to another event loop: make one in each")

    def begin(self, begin: Any, call: StepCall) -> Callable[[], None]:
        number = next(self._numbers)
        self._calls[number] = call
        self._begins[number] = begin
        self._wake.set()
        return lambda: self._cancel(number)

    def _cancel(self, number: int) -> None:
        if self._calls.pop(number, None) is not None and self._begins.pop(number, None) is None:
            self._cancels.append(number)
            self._wake.set()

    async def close(self) -> None:
        self._cancels += self._calls.keys() - self._begins.keys()
        self._begins.clear()
        self._end(None)
        self._is_closing = True
        self._wake.set()
        # The server ends the stream. If it were cancelled instead, gRPC's library would tell of its end later, perhaps when
        # this event loop is closed; and while that fails, a process's other loops are not told of what they wait for.
        await asyncio.wait((self._reading, self._writing), timeout=_ENDS_S)
        self._stream.cancel()
        await cancel(self._reading, self._writing)

    async def _write(self) -> None:
        with suppress(aio.AioRpcError, asyncio.InvalidStateError):  # the reader learns why the stream has ended
            while True:
                await self._wake.wait()
                self._wake.clear()
                while self._begins or self._cancels:
                    await self._stream.write(self._next_request())
                if self._is_closing:
                    await self._stream.done_writing()
                    return

    def _next_request(self) -> Any:
        request: Any = self._request()
        for number in self._cancels[:MAX_ACTIONS]:
            request.actions.add(call=number, cancel=_CANCEL)
        del self._cancels[:MAX_ACTIONS]
        size = 0
        while self._begins and len(request.actions) < MAX_ACTIONS:
            number, begin = next(iter(self._begins.items()))
            step_bytes = begin.ByteSize()
            if request.actions and size + step_bytes > _MESSAGE_BYTES:
                break
            size += step_bytes
            request.actions.add(call=number, begin=begin)
            del self._begins[number]
        return request

    async def _read(self) -> None:
        end = CallEnd(grpc.StatusCode.UNAVAILABLE, "the stream ended unfinished", is_lost=True)
        try:
            async for response in self._stream:
                for event in response.events:
                    self._deliver(event)
        except aio.AioRpcError as error:
            trailing = tuple((key, value) for key, value in error.trailing_metadata() or () if isinstance(value, str))
            end = CallEnd(error.code(), error.details() or error.code().name, trailing, is_lost=True)
        finally:
            self._writing.cancel()
            self._end(end)

    def _deliver(self, event: Any) -> None:
        call = self._calls.get(event.call)
        if call is None:  # it was cancelled
            return
        if not event.HasField("event"):
            del self._calls[event.call]
            end = event.end
            trailing = tuple((header.key, header.value) for header in end.trailing)
            call.ended(CallEnd(_CODES.get(end.code, grpc.StatusCode.UNKNOWN), end.details, trailing))
            return
        try:
            call.take(event.event)
        except Exception as error:  # of whatever kind: the other calls have nothing to do with it
            log.exception("an event of a step cannot be read")
            self._cancel(event.call)
            call.ended(CallEnd(grpc.StatusCode.INTERNAL, f"an event cannot be read: {error}"))

    def _end(self, end: CallEnd | None) -> None:
        self.has_ended = True
        calls = list(self._calls.values())
        self._calls.clear()
        for call in calls:
            call.ended(end)
