"""The server's side of `RunSteps`: many steps over one stream, each run by the method that serves `RunStep`.

A call of its own for each step costs both processes far more than the step's messages do, and so does a message for each token.
"""

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing
from typing import Any, NoReturn

import grpc

from pbkv_cluster.core.background import cancel
from pbkv_cluster.core.errors import DeadlineExceeded
from pbkv_cluster.rpc.errors import to_status
from pbkv_cluster.rpc.v1 import worker_pb2

RunStep = Callable[[worker_pb2.RunStepRequest, Any], AsyncGenerator[worker_pb2.RunStepEvent, None]]
_MESSAGE_BYTES = 1 << 20  # of the events that travel together, unless one is larger alone
_WAITING_BYTES = 4 << 20  # of events that a slow caller has not taken; beyond that its steps wait


class StepCalls:
    """The streams that are open."""

    def __init__(self, run: RunStep) -> None:
        """`run` serves a step; its context has `invocation_metadata`, `add_done_callback` and `abort` alone."""
        self._run = run
        self._streams: set[_Stream] = set()

    async def serve(
        self, requests: AsyncIterator[worker_pb2.RunStepsRequest], context: Any
    ) -> AsyncIterator[worker_pb2.RunStepsResponse]:
        """Serves one stream."""
        stream = _Stream(self._run)
        self._streams.add(stream)
        # A generator whose call is cancelled while it writes ends only when it is garbage collected. The steps must end now.
        context.add_done_callback(lambda _: stream.cancel())
        reading = asyncio.create_task(stream.read(requests), name="steps to run")
        try:
            while (response := await stream.next(reading)) is not None:
                yield response
        finally:
            self._streams.discard(stream)
            stream.cancel()
            await cancel(reading)

    def finish(self) -> None:
        """Has each stream end with its last step, and takes no more."""
        for stream in self._streams:
            stream.finish()


class _Stream:
    """The steps of one caller."""

    def __init__(self, run: RunStep) -> None:
        self._run = run
        self._tasks: dict[int, asyncio.Task[None]] = {}  # by number of the call
        self._events: deque[worker_pb2.RunStepsResponse.Event] = deque()
        self._bytes = 0  # of these
        self._changed = asyncio.Event()  # there are events, or the end is near
        self._has_room = asyncio.Event()
        self._has_room.set()
        self._is_finishing = False

    async def read(self, requests: AsyncIterator[worker_pb2.RunStepsRequest]) -> None:
        try:
            async for request in requests:
                for action in request.actions:
                    self._act(action)
        finally:
            self.finish()

    async def next(self, reading: asyncio.Task[None]) -> worker_pb2.RunStepsResponse | None:
        """Events, as soon as there are any; None at the end. Raises what `reading` has raised."""
        while not self._events:
            if reading.done() and not reading.cancelled() and (error := reading.exception()) is not None:
                raise error
            if self._is_finishing and not self._tasks:
                return None
            self._changed.clear()
            await self._changed.wait()
        response, size = worker_pb2.RunStepsResponse(), 0
        while self._events and (not size or size + self._events[0].ByteSize() <= _MESSAGE_BYTES):
            event = self._events.popleft()
            size += event.ByteSize()
            response.events.append(event)
        self._bytes -= size
        if self._bytes <= _WAITING_BYTES:
            self._has_room.set()
        return response

    def finish(self) -> None:
        self._is_finishing = True
        self._changed.set()

    def cancel(self) -> None:
        self.finish()
        for task in self._tasks.values():
            task.cancel()

    def _act(self, action: worker_pb2.RunStepsRequest.Action) -> None:
        match action.WhichOneof("what"):
            case "cancel":
                if (task := self._tasks.get(action.call)) is not None:
                    task.cancel()
            case "begin" if action.call in self._tasks:
                self._tell_end(action.call, grpc.StatusCode.INVALID_ARGUMENT, "call: is the number of a step that runs")
            case "begin" if self._is_finishing:
                self._tell_end(action.call, grpc.StatusCode.UNAVAILABLE, "the worker is stopping")
            case "begin":
                self._begin(action.call, action.begin)
            case _:
                self._tell_end(action.call, grpc.StatusCode.INVALID_ARGUMENT, "actions: one of begin and cancel must be set")

    def _begin(self, call: int, begin: worker_pb2.RunStepsRequest.Begin) -> None:
        context = _Context(tuple((header.key, header.value) for header in begin.metadata))
        self._tasks[call] = task = asyncio.create_task(self._serve(call, begin, context), name="step")
        task.add_done_callback(lambda done: self._ended(call, done, context))

    async def _serve(self, call: int, begin: worker_pb2.RunStepsRequest.Begin, context: "_Context") -> None:
        limit = asyncio.timeout(begin.timeout_s or None)
        try:
            async with limit, aclosing(self._run(begin.step, context)) as events:
                async for event in events:
                    await self._has_room.wait()
                    self._tell(worker_pb2.RunStepsResponse.Event(call=call, event=event))
        except TimeoutError:
            if not limit.expired():  # another one's
                raise
            raise DeadlineExceeded(f"the step has not ended within {begin.timeout_s:g} s") from None

    def _ended(self, call: int, task: asyncio.Task[None], context: "_Context") -> None:
        """Tells the caller of a step's end; here, as a task that is cancelled before it runs never begins."""
        del self._tasks[call]
        context.done()
        if task.cancelled():
            self._tell_end(call, grpc.StatusCode.CANCELLED, "the step was cancelled")
            return
        match task.exception():
            case None:
                self._tell_end(call, grpc.StatusCode.OK, "")
            case _Abort() as abort:
                self._tell_end(call, abort.code, abort.details)
            case Exception() as error:
                self._tell_end(call, *to_status(error, "RunSteps"))
            case error:
                raise error

    def _tell_end(self, call: int, code: grpc.StatusCode, details: str) -> None:
        end = worker_pb2.RunStepsResponse.End(code=code.value[0], details=details)
        self._tell(worker_pb2.RunStepsResponse.Event(call=call, end=end))

    def _tell(self, event: worker_pb2.RunStepsResponse.Event) -> None:
        self._events.append(event)
        self._bytes += event.ByteSize()
        if self._bytes > _WAITING_BYTES:
            self._has_room.clear()
        self._changed.set()


class _Abort(Exception):
    """A step's method has ended it with a status."""

    def __init__(self, code: grpc.StatusCode, details: str) -> None:
        super().__init__(details)
        self.code = code
        self.details = details


class _Context:
    """What the method that serves `RunStep` needs of gRPC's context."""

    def __init__(self, metadata: tuple[tuple[str, str], ...]) -> None:
        self._metadata = metadata
        self._callbacks: list[Callable[[Any], None]] = []

    def invocation_metadata(self) -> tuple[tuple[str, str], ...]:
        return self._metadata

    def add_done_callback(self, callback: Callable[[Any], None]) -> None:
        self._callbacks.append(callback)

    async def abort(self, code: grpc.StatusCode, details: str = "") -> NoReturn:
        raise _Abort(code, details)

    def done(self) -> None:
        for callback in self._callbacks:
            callback(self)
