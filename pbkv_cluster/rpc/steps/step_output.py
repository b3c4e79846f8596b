"""The output of one step, from a stream that it shares with the client's other steps."""

import asyncio
from collections import deque
from typing import Self

import grpc
from grpc import aio

from pbkv_cluster.core.errors import ResourceExhausted
from pbkv_cluster.core.workflow.step_events import StepEvent
from pbkv_cluster.rpc.convert import step_event_from_wire
from pbkv_cluster.rpc.steps.step_streams import CallEnd, StepStreams
from pbkv_cluster.rpc.v1 import workflow_pb2


class StepOutput:
    """A step that is being run. Iterate once.

    What waits to be iterated over is at most the whole output. Iterating raises `AioRpcError` as a call of its own would, and
    `asyncio.CancelledError` once the connection is closed.
    """

    def __init__(self, streams: StepStreams, step: workflow_pb2.SubmitStepRequest, timeout_s: float | None) -> None:
        """Sends a step.

        Args:
            streams: to the gateway.
            step: to run.
            timeout_s: seconds after which it ends with DEADLINE_EXCEEDED, whatever the gateway does; None: never.
        """
        self._waiting: deque[StepEvent] = deque()
        self._end: BaseException | None = None  # after these
        self._has_ended = False
        self._changed = asyncio.Event()
        self._timer: asyncio.TimerHandle | None = None
        try:
            self._cancel = streams.begin(step, self, timeout_s=timeout_s)
        except ResourceExhausted as error:
            self._cancel = lambda: None
            self._close(call_error(grpc.StatusCode.RESOURCE_EXHAUSTED, str(error)))
        else:
            if timeout_s is not None:
                self._timer = asyncio.get_running_loop().call_later(timeout_s, self._expire)

    @property
    def has_lost_worker(self) -> bool:
        """Whether it has ended because the way from the worker is lost, while the gateway answers."""
        return False

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> StepEvent:
        while not self._waiting:
            if self._has_ended:
                if self._end is None:
                    raise StopAsyncIteration
                end, self._end = self._end, None
                try:
                    raise end
                finally:
                    del end  # else it keeps this frame, which would keep it, and all that its step has in memory
            self._changed.clear()
            await self._changed.wait()
        return self._waiting.popleft()

    def cancel(self) -> None:
        """Has the gateway free what the step holds. Harmless when repeated, and when it has ended."""
        self._cancel()
        self._close(asyncio.CancelledError())

    def take(self, event: workflow_pb2.StepEvent) -> None:
        value = step_event_from_wire(event)
        if value is not None:  # else of a kind that this version does not know
            self._add(value)

    def ended(self, end: CallEnd | None) -> None:
        if end is None:
            self._close(asyncio.CancelledError())
        elif end.code is grpc.StatusCode.OK:
            self._close(None)
        else:
            self._close(call_error(end.code, end.details, end.trailing))

    def _add(self, event: StepEvent) -> None:
        self._waiting.append(event)
        self._changed.set()

    def _expire(self) -> None:
        self._cancel()
        self._close(call_error(grpc.StatusCode.DEADLINE_EXCEEDED, "the step has not ended in time"))

    def _close(self, end: BaseException | None) -> None:
        if self._timer is not None:
            self._timer.cancel()
        if not self._has_ended:
            self._has_ended, self._end = True, end
            self._changed.set()


def call_error(code: grpc.StatusCode, details: str, trailing: tuple[tuple[str, str], ...] = ()) -> aio.AioRpcError:
    """As a call of its own would raise."""
    return aio.AioRpcError(code, aio.Metadata(), aio.Metadata(*trailing), details)
