"""Background tasks, and cancelling them reliably."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, NoReturn

log = logging.getLogger(__name__)

_CANCEL_AGAIN_S = 0.1


class Background:
    """Owns tasks that run until `stop`. If one fails, that is logged at once, and `failure` and `stop` raise its error."""

    def __init__(self) -> None:
        self._tasks: list[asyncio.Task[None]] = []
        self._error: BaseException | None = None  # the first
        self._failed = asyncio.Event()

    def start(self, coroutine: Coroutine[Any, Any, None], name: str) -> None:
        task = asyncio.create_task(coroutine, name=name)
        task.add_done_callback(self._ended)
        self._tasks.append(task)

    async def failure(self) -> NoReturn:
        """Waits until a task fails, then raises its error. If several fail, it is the first one's."""
        await self._failed.wait()
        assert self._error is not None
        raise self._error

    async def stop(self) -> None:
        """Cancels the tasks and waits for them.

        Raises:
            ExceptionGroup: of the errors of all tasks that have failed.
        """
        await cancel(*self._tasks)
        results = await asyncio.gather(*self._tasks, return_exceptions=True)
        self._tasks.clear()
        failures = [result for result in results if isinstance(result, Exception)]
        if failures:
            raise ExceptionGroup("background tasks failed", failures)

    def _ended(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("background task %s failed", task.get_name(), exc_info=error)
            self._error = self._error or error
            self._failed.set()


async def first_failure(*parts: asyncio.Future[Any]) -> None:
    """Waits until one of `parts`, which are meant to run for ever, fails, then raises its error. Cancels the others.

    Raises:
        RuntimeError: all parts have ended without an error.
    """
    try:
        done, _ = await asyncio.wait(parts, return_when=asyncio.FIRST_EXCEPTION)
    finally:
        for part in parts:
            part.cancel()
    for part in done:
        part.result()
    raise RuntimeError("a part that should run for ever has ended")


async def first_failure_of(*waits: Callable[[], Awaitable[None]]) -> None:
    """The same for parts that say how to wait for their failure."""
    await first_failure(*(asyncio.ensure_future(wait()) for wait in waits))


async def cancel(*tasks: asyncio.Task[Any]) -> None:
    """Cancels tasks and waits until they have ended. Their errors are left to the caller."""
    pending = set(tasks)
    while pending:
        # Once is not always enough: the Redis client sometimes swallows a cancellation that arrives while it waits.
        for task in pending:
            task.cancel()
        _, pending = await asyncio.wait(pending, timeout=_CANCEL_AGAIN_S)


async def wait_for(event: asyncio.Event, timeout_s: float) -> bool:
    """Waits until `event` is set, at most `timeout_s` seconds; returns whether it is."""
    try:
        async with asyncio.timeout(timeout_s):
            await event.wait()
    except TimeoutError:
        return False
    return True


def check_cancelled() -> None:
    """Raises CancelledError if the current task has been cancelled and something that it awaited has swallowed that."""
    task = asyncio.current_task()
    if task is not None and task.cancelling():
        raise asyncio.CancelledError
