"""The server's side of `RunSteps` and `SubmitSteps`: many steps over one stream, each run by the method that serves one."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import aclosing
from typing import Any, NoReturn

import grpc

from pbkv_cluster.core import checks
from pbkv_cluster.core.background import cancel
from pbkv_cluster.core.errors import DeadlineExceeded, InvalidArgument, PbkvError, ResourceExhausted, Unavailable
from pbkv_cluster.rpc.authentication import check_again
from pbkv_cluster.rpc.errors import to_status, trailing_metadata
from pbkv_cluster.rpc.steps.outbox import Outbox, Response
from pbkv_cluster.rpc.steps.step_streams import MAX_ACTIONS
from pbkv_cluster.rpc.v1 import types_pb2

RunStep = Callable[[Any, Any], AsyncGenerator[Any, None]]
MAX_STEPS = 16_384  # of one stream at a time
_METADATA_BYTES = 8192  # of one step, as gRPC allows a call
_HEADER_BYTES = 32  # that a header takes besides its key and value, by the rule of HTTP/2 (RFC 9113, section 6.5.2)
_FRAME_BYTES = 1 << 10  # of a message besides its one step, about


class StepCalls:
    """The streams that are open."""

    def __init__(self, method: str, run: RunStep, response: Response, *, keeps_deadlines: bool = False) -> None:
        """Args:
        method: name of the method, for the log.
        run: serves a step; its context has `invocation_metadata`, `time_remaining`, `add_done_callback` and `abort` alone.
        response: the messages that are sent.
        keeps_deadlines: `run` ends a step at its deadline itself.
        """
        self._method = method
        self._run = run
        self._response = response
        self._keeps_deadlines = keeps_deadlines
        self._streams: set[_Stream] = set()

    async def serve(self, requests: AsyncIterator[Any], context: Any) -> AsyncIterator[Any]:
        """Serves one stream."""
        stream = _Stream(self._method, self._run, self._response, self._keeps_deadlines)
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

    def __init__(self, method: str, run: RunStep, response: Response, keeps_deadlines: bool) -> None:
        self._method = method
        self._run = run
        self._keeps_deadlines = keeps_deadlines
        self._tasks: dict[int, asyncio.Task[None]] = {}  # by number of the call
        self._outbox = Outbox(response)
        self._is_finishing = False

    async def read(self, requests: AsyncIterator[Any]) -> None:
        try:
            async for request in requests:
                if len(request.actions) > MAX_ACTIONS:
                    raise InvalidArgument("actions", f"at most {MAX_ACTIONS} in a message, got {len(request.actions)}")
                size_bytes = request.ByteSize()
                for action in request.actions:
                    if not action.HasField("cancel"):
                        await self._outbox.room()
                    self._act(action, size_bytes)
        finally:
            self.finish()

    async def next(self, reading: asyncio.Task[None]) -> Any:
        """Events, as soon as there are any; None at the end. Raises what `reading` has raised."""
        while (response := self._outbox.take()) is None:
            if reading.done() and not reading.cancelled() and (error := reading.exception()) is not None:
                raise error
            if self._is_finishing and not self._tasks:
                return None
            await self._outbox.changed()
        return response

    def finish(self) -> None:
        self._is_finishing = True
        self._outbox.wake()

    def cancel(self) -> None:
        self.finish()
        for task in self._tasks.values():
            task.cancel()

    def _act(self, action: Any, size_bytes: int) -> None:
        """Does what the caller asks; `size_bytes`: of the message that the action came in."""
        if action.WhichOneof("what") == "cancel":
            if (task := self._tasks.get(action.call)) is not None:
                task.cancel()
            return
        try:
            if action.WhichOneof("what") is None:
                raise InvalidArgument("actions", "one of begin and cancel must be set")
            self._begin(action.call, action.begin, size_bytes)
        except PbkvError as error:
            self._tell_end(action.call, *to_status(error, self._method))

    def _begin(self, call: int, begin: Any, size_bytes: int) -> None:
        """Has a step run.

        Raises:
            InvalidArgument: names what is wrong with it.
            ResourceExhausted: too many run.
            Unavailable: the server is stopping.
        """
        if call in self._tasks:
            raise InvalidArgument("call", "is the number of a step that runs")
        if self._is_finishing:
            raise Unavailable("the server is stopping")
        if len(self._tasks) >= MAX_STEPS:
            raise ResourceExhausted(f"the stream has {MAX_STEPS} steps in flight already")
        timeout_s = checks.seconds("timeout_s", begin.timeout_s) or None
        context = _Context(_metadata(begin.metadata), timeout_s)
        step = begin.step
        if size_bytes > step.ByteSize() + _FRAME_BYTES:
            # A part of a message keeps all of it in memory, for which nobody has been charged.
            step = type(step)()
            step.CopyFrom(begin.step)
        self._tasks[call] = task = asyncio.create_task(self._serve(call, step, context), name="step")
        task.add_done_callback(lambda done: self._ended(call, done, context))

    async def _serve(self, call: int, step: Any, context: "_Context") -> None:
        check_again()  # the stream may have begun long ago
        timeout_s = context.time_remaining()
        if self._keeps_deadlines or timeout_s is None:
            await self._pass_on(call, step, context)
            return
        limit = asyncio.timeout(timeout_s)
        try:
            async with limit:
                await self._pass_on(call, step, context)
        except TimeoutError:
            if not limit.expired():  # another one's
                raise
            raise DeadlineExceeded(f"the step has not ended within {timeout_s:g} s") from None

    async def _pass_on(self, call: int, step: Any, context: "_Context") -> None:
        async with aclosing(self._run(step, context)) as events:
            async for event in events:
                await self._outbox.room()
                self._outbox.add(event.ByteSize()).add(call=call, event=event)

    def _ended(self, call: int, task: asyncio.Task[None], context: "_Context") -> None:
        """Tells the caller of a step's end; here, as a task that is cancelled before it runs never begins."""
        del self._tasks[call]
        context.done()
        if task.cancelled():
            # By this server, which stops: a caller that has cancelled it no longer listens.
            self._tell_end(call, grpc.StatusCode.UNAVAILABLE, "the step was cancelled on the server")
            return
        match task.exception():
            case None:
                self._tell_end(call, grpc.StatusCode.OK, "")
            case _Abort() as abort:
                self._tell_end(call, abort.code, abort.details)
            case Exception() as error:
                self._tell_end(call, *to_status(error, self._method), trailing_metadata(error))
            case error:
                raise error

    def _tell_end(self, call: int, code: grpc.StatusCode, details: str, trailing: tuple[tuple[str, str], ...] = ()) -> None:
        headers = [types_pb2.Header(key=key, value=value) for key, value in trailing]
        end = types_pb2.CallEnd(code=code.value[0], details=details, trailing=headers)
        self._outbox.add(end.ByteSize()).add(call=call, end=end)


class _Abort(Exception):
    """A step's method has ended it with a status."""

    def __init__(self, code: grpc.StatusCode, details: str) -> None:
        super().__init__(details)
        self.code = code
        self.details = details


class _Context:
    """What the method that serves a step needs of gRPC's context."""

    def __init__(self, metadata: tuple[tuple[str, str], ...], timeout_s: float | None) -> None:
        self._metadata = metadata
        self._timeout_s = timeout_s
        self._callbacks: list[Callable[[Any], None]] = []

    def invocation_metadata(self) -> tuple[tuple[str, str], ...]:
        return self._metadata

    def time_remaining(self) -> float | None:
        """Asked for as the step begins."""
        return self._timeout_s

    def add_done_callback(self, callback: Callable[[Any], None]) -> None:
        self._callbacks.append(callback)

    async def abort(self, code: grpc.StatusCode, details: str = "") -> NoReturn:
        raise _Abort(code, details)

    def done(self) -> None:
        for callback in self._callbacks:
            callback(self)


def _metadata(headers: Sequence[types_pb2.Header]) -> tuple[tuple[str, str], ...]:
    """Raises:
    InvalidArgument: they are too large.
    """
    if sum(len(each.key) + len(each.value) + _HEADER_BYTES for each in headers) > _METADATA_BYTES:
        raise InvalidArgument("metadata", f"at most {_METADATA_BYTES} bytes, {_HEADER_BYTES} of them for each header")
    return tuple((each.key, each.value) for each in headers)
