"""Runs the engine on a thread of its own, for callers on an event loop."""

import asyncio
import logging
import queue
import threading
from collections.abc import AsyncGenerator, Callable
from typing import Any, TypeVar

from pbkv_cluster.core.errors import Unavailable
from pbkv_cluster.gpu_worker.engine.engine import Engine
from pbkv_cluster.gpu_worker.engine.output import Output
from pbkv_cluster.gpu_worker.engine.sequence import StepRequest

log = logging.getLogger(__name__)
_WAIT_S = 0.005  # for loads, while nothing else can run, from one look for commands to the next
T = TypeVar("T")
Command = Callable[[Engine], None]


class EngineThread:
    """Steps an engine while it is busy. Commands run between two batches, in order of arrival, and while all wait for loads."""

    def __init__(self, engine: Engine, loop: asyncio.AbstractEventLoop) -> None:
        """Args:
        engine: from now on only the thread may touch it.
        loop: of the callers; outputs are delivered there.
        """
        self._engine = engine
        self._loop = loop
        # An entry is one call of a client, one batch of forecasts or one model update; each is bounded at its source.
        self._inbox: queue.SimpleQueue[Command | None] = queue.SimpleQueue()
        self._streams: dict[str, asyncio.Queue[Output | Exception]] = {}
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._ended: asyncio.Future[None] = loop.create_future()  # done: commands that have not run by now never will
        self.failed: asyncio.Future[None] = loop.create_future()  # receives the exception that ended the engine

    def start(self) -> None:
        self._thread.start()

    async def stop(self) -> None:
        """Ends the thread. Open streams fail."""
        self._inbox.put(None)
        await asyncio.to_thread(self._thread.join)
        self._end(Unavailable("the worker is stopping"))

    def post(self, command: Command) -> None:
        """Runs `command` on the thread, soon. If it fails, the engine does."""
        self._inbox.put(command)

    async def call(self, command: Callable[[Engine], T]) -> T:
        """Runs `command` on the thread and returns its result, or raises its error.

        Raises:
            Unavailable: the engine has ended.
        """
        if self._dead():
            raise Unavailable("the worker's engine has ended")
        answer: asyncio.Future[T] = self._loop.create_future()

        def run(engine: Engine) -> None:
            try:
                result = command(engine)
            except Exception as error:  # noqa: BLE001  # raised to the caller
                self.deliver(_fail, answer, error)
            else:
                self.deliver(_succeed, answer, result)

        self._inbox.put(run)
        both: set[asyncio.Future[Any]] = {answer, self._ended}
        await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
        if not answer.done():
            raise Unavailable("the worker's engine has ended")
        return answer.result()

    async def stream(self, request: StepRequest) -> AsyncGenerator[Output, None]:
        """Runs a step and yields its outputs. Closing the generator early cancels the step.

        Raises:
            InvalidArgument, FailedPrecondition, ResourceExhausted: from `Engine.submit`.
            Unavailable: the engine has ended.
        """
        outputs: asyncio.Queue[Output | Exception] = asyncio.Queue()
        self._streams[request.id] = outputs
        try:
            await self.call(lambda engine: engine.submit(request))
            while True:
                output = await outputs.get()
                if isinstance(output, Exception):
                    raise output
                yield output
                if output.finished is not None:
                    return
        finally:
            del self._streams[request.id]
            # Does nothing if the step has ended.
            self.post(lambda engine: engine.cancel(request.id))

    def _dead(self) -> bool:
        return self._ended.done() or not self._thread.is_alive()

    def _run(self) -> None:
        try:
            while self._commands():
                if not self._engine.busy:
                    self._engine.run_idle()
                else:
                    outputs = self._engine.step(_WAIT_S)
                    if outputs:
                        self.deliver(self._hand_out, outputs)
        except Exception as error:  # the worker ends, and reports it
            log.exception("the engine failed")
            self.deliver(self._fail_all, error)

    def _commands(self) -> bool:
        """Runs the commands that are queued; while the engine is idle, waits for one, or until it has something else to do.

        Returns False to stop the thread.
        """
        while True:
            try:
                command = self._inbox.get(not self._engine.busy, self._engine.idle_s)
            except queue.Empty:
                return True
            if command is None:
                return False
            command(self._engine)

    def deliver(self, call: Callable[..., None], *args: object) -> None:
        """Called on the engine's thread: runs `call` on the event loop."""
        try:
            self._loop.call_soon_threadsafe(call, *args)
        except RuntimeError:
            if not self._loop.is_closed():
                raise
            log.debug("an output is lost: the event loop has closed")

    def _hand_out(self, outputs: list[Output]) -> None:
        for output in outputs:
            stream = self._streams.get(output.request_id)
            if stream is not None:
                stream.put_nowait(output)

    def _fail_all(self, error: Exception) -> None:
        self._end(Unavailable(f"the worker's engine has failed: {error}"))
        if not self.failed.done():
            self.failed.set_exception(error)

    def _end(self, error: Exception) -> None:
        if not self._ended.done():
            self._ended.set_result(None)
        for stream in self._streams.values():
            stream.put_nowait(error)


def _succeed(answer: asyncio.Future[T], result: T) -> None:
    if not answer.done():
        answer.set_result(result)


def _fail(answer: asyncio.Future[T], error: Exception) -> None:
    if not answer.done():
        answer.set_exception(error)
