"""Waiting for what is to become true."""

import asyncio
import time
from collections.abc import Awaitable, Callable


def wait_for(condition: Callable[[], bool], timeout_s: float, why: Callable[[], str] = lambda: "") -> None:
    """Polls until `condition` holds; fails the test with `why` if it does not in time."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"not within {timeout_s} s: {why()}"
        time.sleep(0.02)


async def eventually(condition: Callable[[], Awaitable[bool]], timeout_s: float, why: Callable[[], str] = lambda: "") -> None:
    """The same for a condition that is awaited."""
    deadline = time.monotonic() + timeout_s
    while not await condition():
        assert time.monotonic() < deadline, f"not within {timeout_s} s: {why()}"
        await asyncio.sleep(0.02)
