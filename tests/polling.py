"""Polling with a deadline, for tests that wait for another thread, task or process."""

import asyncio
import inspect
import time
from collections.abc import Awaitable, Callable

_POLL_S = 0.01


def wait_for(condition: Callable[[], bool], timeout_s: float = 30.0, why: Callable[[], str] | None = None) -> None:
    """Polls until `condition` holds. Fails the test after `timeout_s` seconds, with `why` or the condition's source."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"not within {timeout_s} s: {(why or _source(condition))()}"
        time.sleep(_POLL_S)


async def eventually(
    condition: Callable[[], bool | Awaitable[bool]], timeout_s: float = 30.0, why: Callable[[], str] | None = None
) -> None:
    """Does the same without blocking the event loop; `condition` may be a coroutine function."""
    deadline = time.monotonic() + timeout_s
    while True:
        holds = condition()
        if holds if isinstance(holds, bool) else await holds:
            return
        assert time.monotonic() < deadline, f"not within {timeout_s} s: {(why or _source(condition))()}"
        await asyncio.sleep(_POLL_S)


def _source(condition: Callable[..., object]) -> Callable[[], str]:
    return lambda: inspect.getsource(condition).strip()
