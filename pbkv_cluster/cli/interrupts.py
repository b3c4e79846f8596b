"""Commands that call the cluster do so on an event loop, and some of them until somebody interrupts them.

`--help` is to come at once, so asyncio is imported when a command runs.
"""

import signal
from collections.abc import Coroutine
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    import asyncio

T = TypeVar("T")


def on_event_loop(coroutine: Coroutine[Any, Any, T]) -> T:
    """As `asyncio.run`."""
    import asyncio

    return asyncio.run(coroutine)


def catch_interrupts() -> "asyncio.Event":
    """From now on SIGINT and SIGTERM set the returned event, instead of ending the process. On an event loop."""
    import asyncio

    interrupted = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, interrupted.set)
    return interrupted


async def run_until(end: Coroutine[Any, Any, Any], running: Coroutine[Any, Any, None]) -> None:
    """Runs something until it ends, or until `end` returns; the other is cancelled. Raises the error of what has failed."""
    import asyncio

    from pbkv_cluster.core.background import cancel

    tasks = [asyncio.create_task(running), asyncio.create_task(end)]
    done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    await cancel(*tasks)
    for task in done:
        task.result()
