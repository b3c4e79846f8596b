"""Tasks that run beside others until they are stopped, and what cancelling needs to be sure of."""

import asyncio
import logging
from collections.abc import Coroutine
from typing import Any, NoReturn

log = logging.getLogger(__name__)

_CANCEL_AGAIN_S = 0.1


class Background:
    """Owns tasks that are to run until `stop`. One that fails is logged at once and raises from `failure` and `stop`."""

    def __init__(self) -> None:
        self._tasks: list[asyncio.Task[None]] = []
        self._error: BaseException | None = None  # the first
        self._failed = asyncio.Event()

    def start(self, coroutine: Coroutine[Any, Any, None], name: str) -> None:
        task = asyncio.create_task(coroutine, name=name)
        task.add_done_callback(self._ended)
        self._tasks.append(task)

    async def failure(self) -> NoReturn:
        """Waits until a task fails, for ever if none does, and raises what the first failed with."""
        await self._failed.wait()
        assert self._error is not None
        raise self._error

    async def stop(self) -> None:
        """Cancels the tasks and waits for them.

        Raises:
            ExceptionGroup: tasks had failed.
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
    """Waits until one of the parts fails, and raises what it failed with. Parts are to run for ever.

    Raises:
        RuntimeError: all of them have ended.
    """
    try:
        done, _ = await asyncio.wait(parts, return_when=asyncio.FIRST_EXCEPTION)
    finally:
        for part in parts:
            part.cancel()
    for part in done:
        part.result()
    raise RuntimeError("what is to run for ever has ended")


async def cancel(*tasks: asyncio.Task[Any]) -> None:
    """Cancels tasks and waits until they have ended; how they did is left to the caller."""
    pending = set(tasks)
    while pending:
        # Once is not always enough: the Redis client now and then loses a cancel that comes while it waits.
        for task in pending:
            task.cancel()
        _, pending = await asyncio.wait(pending, timeout=_CANCEL_AGAIN_S)


async def wait_for(event: asyncio.Event, timeout_s: float) -> bool:
    """Waits until `event` is set, at most `timeout_s` seconds; tells whether it is."""
    try:
        async with asyncio.timeout(timeout_s):
            await event.wait()
    except TimeoutError:
        return False
    return True


def check_cancelled() -> None:
    """Raises the cancel of the present task again, where what was awaited since may have lost it."""
    task = asyncio.current_task()
    if task is not None and task.cancelling():
        raise asyncio.CancelledError
