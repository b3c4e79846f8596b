"""The steps that run on one worker: all of them over one stream, which is opened when it is needed."""

import asyncio
import itertools
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from enum import StrEnum
from itertools import chain
from typing import TYPE_CHECKING, Any, Self

import grpc
from grpc import aio

from pbkv_cluster.core.background import cancel
from pbkv_cluster.core.errors import PbkvError, ResourceExhausted, Unavailable
from pbkv_cluster.core.usage import Usage
from pbkv_cluster.core.workflow.step_events import FinishReason, Tokens
from pbkv_cluster.rpc import convert
from pbkv_cluster.rpc.channel import MAX_MESSAGE_BYTES
from pbkv_cluster.rpc.errors import from_status
from pbkv_cluster.rpc.v1 import worker_pb2

if TYPE_CHECKING:
    from pbkv_cluster.rpc.v1.worker_pb2_grpc import WorkerServiceAsyncStub

_MESSAGE_BYTES = 1 << 20  # of the steps that travel together, unless one is larger alone
_FRAME_BYTES = 1 << 10  # of a message besides its one step, at most
_LEAST_S = 1e-3  # of a limit: 0 would be none
_CODES = {code.value[0]: code for code in grpc.StatusCode}
# How a step ends when its worker, or the way to it, is gone. ABORTED and CANCELLED come from a server that shuts down.
_LOST = frozenset({grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.UNKNOWN, grpc.StatusCode.CANCELLED, grpc.StatusCode.ABORTED})


class FailureKind(StrEnum):
    """Why a worker did not finish a step."""

    LOST = "lost"  # the worker, or the connection to it, is gone
    FULL = "full"  # its queue is full
    DEFECT = "defect"  # it failed inside
    REFUSED = "refused"  # it finds the step wrong


class WorkerFailure(Exception):
    """A worker did not finish a step."""

    def __init__(self, kind: FailureKind, error: PbkvError, details: str) -> None:
        super().__init__(details)
        self.kind = kind
        self.error = error  # for the client, if the step is not run elsewhere
        self.details = details  # in the worker's words


@dataclass(frozen=True, slots=True)
class StepOutcome:
    """The end of a step on its worker."""

    reason: FinishReason
    usage: Usage  # as far as the worker knows it
    hidden: bytes  # projected hidden state of the prompt's last token; empty: not known


class StepStream:
    """A step on a worker. Iterate once: Tokens, then one StepOutcome. Tokens that are there together come as one.

    Iterating raises WorkerFailure where the worker does not finish the step, and `asyncio.CancelledError` after `cancel`.
    """

    def __init__(self) -> None:
        # As values: a part of a message would keep all of it in memory, the output of other steps included.
        self._waiting: list[Tokens] = []
        self._outcome: StepOutcome | None = None  # after these
        self._end: BaseException | None = None  # after all
        self._changed = asyncio.Event()
        self._has_ended = False  # the outcome has been taken
        self._connection: _Connection | None = None  # None: the worker has no more to say
        self._call = 0

    def cancel(self) -> None:
        """Has the worker free what the step holds. Harmless when repeated."""
        if self._connection is not None:
            self._connection.cancel(self._call)
        if not self._has_ended:
            self.close(asyncio.CancelledError())

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Tokens | StepOutcome:
        if self._has_ended:
            raise StopAsyncIteration
        while True:
            if self._waiting:
                waiting, self._waiting = self._waiting, []
                return waiting[0] if len(waiting) == 1 else _joined(waiting)
            if self._outcome is not None:
                self._has_ended = True
                return self._outcome
            if self._end is not None:
                raise self._end
            self._changed.clear()
            await self._changed.wait()

    def opened(self, connection: "_Connection", call: int) -> None:
        self._connection, self._call = connection, call

    def take(self, event: worker_pb2.RunStepEvent) -> None:
        match event.WhichOneof("event"):
            case "tokens":
                self._waiting.append(convert.tokens_from_wire(event.tokens))
            case "finished":
                end = event.finished
                reason, usage = convert.finish_reason_from_wire(end.reason), convert.usage_from_wire(end.usage)
                self._outcome = StepOutcome(reason, usage, end.hidden)
        self._changed.set()

    def close(self, end: BaseException) -> None:
        """Nothing comes any more. A stream that was cancelled stays so."""
        self._connection = None
        if not isinstance(self._end, asyncio.CancelledError):
            self._end = end
        if isinstance(end, asyncio.CancelledError):
            self._waiting.clear()
            self._outcome = None
        self._changed.set()


def _joined(parts: Sequence[Tokens]) -> Tokens:
    logprobs = tuple(chain.from_iterable(each.logprobs for each in parts))
    return Tokens(b"".join(each.packed for each in parts), "".join(each.text for each in parts), logprobs)


class StepLink:
    """Where the steps of one worker begin. A stream that has broken is replaced for the next step."""

    def __init__(self, stub: "WorkerServiceAsyncStub") -> None:
        self._stub = stub
        self._connection: _Connection | None = None

    def run(
        self, step: worker_pb2.RunStepRequest, metadata: Sequence[tuple[str, str]] = (), timeout_s: float | None = None
    ) -> StepStream:
        """Sends a step; returns at once.

        Args:
            step: to run.
            metadata: that a call of its own would have.
            timeout_s: seconds after which the worker drops it; None: never.
        """
        headers = [worker_pb2.RunStepsRequest.Header(key=key, value=value) for key, value in metadata]
        begin = worker_pb2.RunStepsRequest.Begin(
            step=step, metadata=headers, timeout_s=0.0 if timeout_s is None else max(timeout_s, _LEAST_S)
        )
        stream = StepStream()
        if (size := begin.ByteSize()) > MAX_MESSAGE_BYTES - _FRAME_BYTES:  # it would end all others, too
            problem = f"a step of {size:,} bytes is too large for a message"
            stream.close(WorkerFailure(FailureKind.REFUSED, ResourceExhausted(problem), problem))
            return stream
        if self._connection is None or self._connection.has_ended:
            self._connection = _Connection(self._stub.RunSteps())
        self._connection.begin(begin, stream)
        return stream

    async def close(self) -> None:
        """Ends the stream, and cancels its steps."""
        if self._connection is not None:
            await self._connection.close()


class _Connection:
    """One stream to a worker."""

    def __init__(self, call: Any) -> None:
        self._call = call
        self._numbers = itertools.count()
        self._streams: dict[int, StepStream] = {}  # by number of the call
        # To be sent. As many bytes as the steps in flight have: what is cancelled before it was sent leaves.
        self._begins: dict[int, worker_pb2.RunStepsRequest.Begin] = {}  # by number of the call, in order
        self._cancels: list[int] = []  # of calls that were sent
        self._wake = asyncio.Event()
        self.has_ended = False
        self._reading = asyncio.create_task(self._read(), name="output of steps")
        self._writing = asyncio.create_task(self._write(), name="steps to a worker")

    def begin(self, begin: worker_pb2.RunStepsRequest.Begin, stream: StepStream) -> None:
        number = next(self._numbers)
        self._streams[number] = stream
        stream.opened(self, number)
        self._begins[number] = begin
        self._wake.set()

    def cancel(self, number: int) -> None:
        if self._streams.pop(number, None) is not None and self._begins.pop(number, None) is None:
            self._cancels.append(number)
            self._wake.set()

    async def close(self) -> None:
        self._fail(asyncio.CancelledError())
        self._call.cancel()
        await cancel(self._reading, self._writing)

    async def _write(self) -> None:
        with suppress(aio.AioRpcError, asyncio.InvalidStateError):  # the reader learns why the stream has ended
            while True:
                await self._wake.wait()
                self._wake.clear()
                while self._begins or self._cancels:
                    await self._call.write(self._next_request())

    def _next_request(self) -> worker_pb2.RunStepsRequest:
        cancel, size = worker_pb2.RunStepsRequest.Cancel(), 0
        request = worker_pb2.RunStepsRequest(
            actions=[worker_pb2.RunStepsRequest.Action(call=number, cancel=cancel) for number in self._cancels]
        )
        self._cancels.clear()
        while self._begins:
            number, begin = next(iter(self._begins.items()))
            step_bytes = begin.ByteSize()
            if request.actions and size + step_bytes > _MESSAGE_BYTES:
                break
            size += step_bytes
            request.actions.add(call=number, begin=begin)
            del self._begins[number]
        return request

    async def _read(self) -> None:
        problem = "the stream ended unfinished"
        try:
            async for response in self._call:
                for event in response.events:
                    self._deliver(event)
        except aio.AioRpcError as error:
            problem = error.details() or error.code().name
        finally:
            self._writing.cancel()
            self._fail(WorkerFailure(FailureKind.LOST, Unavailable(problem), problem))

    def _deliver(self, event: worker_pb2.RunStepsResponse.Event) -> None:
        stream = self._streams.get(event.call)
        if stream is None:  # it was cancelled
            return
        if event.WhichOneof("what") == "event":
            stream.take(event.event)
        else:
            del self._streams[event.call]
            stream.close(_failure(_CODES.get(event.end.code, grpc.StatusCode.UNKNOWN), event.end.details))

    def _fail(self, end: BaseException) -> None:
        self.has_ended = True
        for stream in self._streams.values():
            stream.close(end)
        self._streams.clear()


def _failure(code: grpc.StatusCode, details: str) -> WorkerFailure:
    match code:
        case grpc.StatusCode.OK:
            problem = "the step ended unfinished"
            return WorkerFailure(FailureKind.LOST, Unavailable(problem), problem)
        case code if code in _LOST:
            kind = FailureKind.LOST
        case grpc.StatusCode.RESOURCE_EXHAUSTED:
            kind = FailureKind.FULL
        case grpc.StatusCode.INTERNAL:
            kind = FailureKind.DEFECT
        case _:
            kind = FailureKind.REFUSED
    return WorkerFailure(kind, from_status(code, details or code.name), details)
