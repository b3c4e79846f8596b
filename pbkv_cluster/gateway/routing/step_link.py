"""The steps that run on one worker: all of them over one stream, which is opened when it is needed."""

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from itertools import chain
from typing import TYPE_CHECKING, Self

import grpc

from pbkv_cluster.core.errors import PbkvError, ResourceExhausted, TryAgain, Unavailable
from pbkv_cluster.core.load_speeds import LoadSpeeds
from pbkv_cluster.core.usage import Usage
from pbkv_cluster.core.workflow.step_events import FinishReason, HandedOver, Tokens
from pbkv_cluster.rpc import convert
from pbkv_cluster.rpc.errors import from_status
from pbkv_cluster.rpc.steps.step_streams import CallEnd, StepStreams
from pbkv_cluster.rpc.v1 import worker_pb2

if TYPE_CHECKING:
    from pbkv_cluster.rpc.v1.worker_pb2_grpc import WorkerServiceAsyncStub

# How a step ends when its worker, or the way to it, is gone. ABORTED and CANCELLED come from a server that shuts down.
_LOST = frozenset({grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.UNKNOWN, grpc.StatusCode.CANCELLED, grpc.StatusCode.ABORTED})


class FailureKind(StrEnum):
    """Why a worker did not finish a step."""

    LOST = "lost"  # the worker, or the connection to it, is gone
    FULL = "full"  # its queue is full
    DEFECT = "defect"  # it failed inside
    REFUSED = "refused"  # it finds the step wrong
    RECEIVER_LOST = "receiver_lost"  # the client's receiver, to which the output went, is gone


class WorkerFailure(Exception):
    """A worker did not finish a step."""

    def __init__(self, kind: FailureKind, error: PbkvError, details: str) -> None:
        super().__init__(details)
        self.kind = kind
        self._error: PbkvError | None = error
        self.details = details  # in the worker's words

    def taken_error(self) -> PbkvError:
        """For the client, if the step is not run elsewhere. May be taken once, as it is to name this as its cause: two errors
        that keep each other stay in memory, with all that the step has, until a full garbage collection.
        """
        error, self._error = self._error, None
        assert error is not None
        return error


@dataclass(frozen=True, slots=True)
class StepOutcome:
    """The end of a step on its worker."""

    reason: FinishReason
    usage: Usage  # as far as the worker knows it
    hidden: bytes  # projected hidden state of the prompt's last token; empty: not known
    speeds: LoadSpeeds | None = None  # of the worker, then; None: not known


@dataclass(frozen=True, slots=True)
class Ticket:
    """With which the step's receiver may connect to the worker; the output of this step comes here."""

    value: bytes


class StepStream:
    """A step on a worker. Iterate once: Tokens, then one StepOutcome. Tokens that are there together come as one.

    Where the step names a receiver, either a Ticket comes before them, or in place of them HandedOver Tokens: the first output,
    and the rest at the end.

    Iterating raises WorkerFailure where the worker does not finish the step, and `asyncio.CancelledError` after `cancel`.
    """

    def __init__(self) -> None:
        # As values: a part of a message would keep all of it in memory, the output of other steps included.
        self._waiting: list[Tokens] = []
        self._of_receiver: deque[Ticket | HandedOver] = deque()  # before these
        self._outcome: StepOutcome | None = None  # after these
        self._end: BaseException | None = None  # after all
        self._changed = asyncio.Event()
        self._has_ended = False  # the outcome has been taken
        self._cancel: Callable[[], None] | None = None  # None: the worker has no more to say

    def cancel(self) -> None:
        """Has the worker free what the step holds. Harmless when repeated."""
        if self._cancel is not None:
            self._cancel()
        if not self._has_ended:
            self._close(asyncio.CancelledError())

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Ticket | HandedOver | Tokens | StepOutcome:
        if self._has_ended:
            raise StopAsyncIteration
        while True:
            if self._of_receiver:
                return self._of_receiver.popleft()
            if self._waiting:
                waiting, self._waiting = self._waiting, []
                return waiting[0] if len(waiting) == 1 else _joined(waiting)
            if self._outcome is not None:
                self._has_ended = True
                return self._outcome
            if self._end is not None:
                self._has_ended = True
                end, self._end = self._end, None
                try:
                    raise end
                finally:
                    del end  # else it keeps this frame, which would keep it, and all that its step has in memory
            self._changed.clear()
            await self._changed.wait()

    def sent(self, cancel: Callable[[], None]) -> None:
        """The step is on its way, and may be cancelled."""
        self._cancel = cancel

    def take(self, event: worker_pb2.RunStepEvent) -> None:
        match event.WhichOneof("event"):
            case "tokens":
                self._waiting.append(convert.tokens_from_wire(event.tokens))
            case "finished":
                end = event.finished
                reason, usage = convert.finish_reason_from_wire(end.reason), convert.usage_from_wire(end.usage)
                speeds = convert.load_speeds_from_wire(end.speeds) if end.HasField("speeds") else None
                self._outcome = StepOutcome(reason, usage, end.hidden, speeds)
            case "invitation":
                self._of_receiver.append(Ticket(event.invitation.ticket))
            case "handed_over":
                self._of_receiver.append(HandedOver(convert.tokens_from_wire(event.handed_over)))
            case "receiver_lost":
                problem = "the client's receiver is gone"
                self._close(WorkerFailure(FailureKind.RECEIVER_LOST, TryAgain(problem), problem))
        self._changed.set()

    def ended(self, end: CallEnd | None) -> None:
        self._close(asyncio.CancelledError() if end is None else _failure(end))

    def refuse(self, problem: str) -> None:
        """The step cannot be sent."""
        self._close(WorkerFailure(FailureKind.REFUSED, ResourceExhausted(problem), problem))

    def _close(self, end: BaseException) -> None:
        """Nothing comes any more. A stream that was cancelled stays so."""
        self._cancel = None
        if self._end is None or isinstance(end, asyncio.CancelledError):  # the first says why
            self._end = end
        if isinstance(end, asyncio.CancelledError):
            self._waiting.clear()
            self._of_receiver.clear()
            self._outcome = None
        self._changed.set()


def _joined(parts: Sequence[Tokens]) -> Tokens:
    logprobs = tuple(chain.from_iterable(each.logprobs for each in parts))
    return Tokens(b"".join(each.packed for each in parts), "".join(each.text for each in parts), logprobs)


class StepLink:
    """Where the steps of one worker begin."""

    def __init__(self, stub: "WorkerServiceAsyncStub") -> None:
        self._streams = StepStreams(lambda: stub.RunSteps(), worker_pb2.RunStepsRequest)

    def run(
        self, step: worker_pb2.RunStepRequest, metadata: Sequence[tuple[str, str]] = (), timeout_s: float | None = None
    ) -> StepStream:
        """Sends a step; returns at once.

        Args:
            step: to run.
            metadata: that a call of its own would have.
            timeout_s: seconds after which the worker drops it; None: never.
        """
        stream = StepStream()
        try:
            stream.sent(self._streams.begin(step, stream, metadata, timeout_s))
        except ResourceExhausted as error:
            stream.refuse(str(error))
        return stream

    async def close(self) -> None:
        """Ends the stream, and cancels its steps."""
        await self._streams.close()


def _failure(end: CallEnd) -> WorkerFailure:
    if end.is_lost:
        return WorkerFailure(FailureKind.LOST, Unavailable(end.details), end.details)
    match end.code:
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
    return WorkerFailure(kind, from_status(end.code, end.details or end.code.name), end.details)
