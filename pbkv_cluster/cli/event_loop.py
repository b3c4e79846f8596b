"""Commands that call the cluster do so on an event loop, which takes longer to import than `--help` may take."""

from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


def on_event_loop(coroutine: Coroutine[Any, Any, T]) -> T:
    """As `asyncio.run`."""
    import asyncio

    return asyncio.run(coroutine)
