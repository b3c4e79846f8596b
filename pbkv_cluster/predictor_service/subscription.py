"""What waits for one receiver of forecasts: bounded, newest first to count, and in the way of nobody else."""

import asyncio
from collections.abc import Callable, Iterable
from typing import NamedTuple, Self

from pbkv_cluster.core.errors import Unavailable
from pbkv_cluster.core.forecast import Forecast


class Batch(NamedTuple):
    """Forecasts that travel together."""

    forecasts: list[Forecast]
    snapshot: bool  # holds every open workflow: forget those it does not name


class Subscription:
    """An endless asynchronous iterator of batches, for one reader. The first is a snapshot.

    Only the newest forecast of a workflow waits, so a reader that is slow for a moment misses nothing that still counts. Where
    more than `limit` wait they are dropped, and the next batch is a snapshot made when the reader asks for it: one that never
    does costs neither memory nor work.
    """

    def __init__(
        self, name: str, limit: int, snapshot: Callable[[], list[Forecast]], on_close: Callable[["Subscription"], None]
    ) -> None:
        self.name = name
        self._limit = limit
        self._snapshot = snapshot
        self._on_close = on_close
        self._waiting: dict[str, Forecast] = {}
        self._behind = True
        self._closed = False
        self._failure = ""
        self._ready = asyncio.Event()
        self._ready.set()

    def offer(self, forecasts: Iterable[Forecast]) -> bool:
        """Adds forecasts; never waits. Returns whether this made the reader fall behind, to be sent a snapshot."""
        if self._behind or self._closed:
            return False
        self._waiting.update((forecast.workflow, forecast) for forecast in forecasts)
        if len(self._waiting) > self._limit:
            self._waiting = {}
            self._behind = True
        self._ready.set()
        return self._behind

    def close(self, failure: str = "") -> None:
        """Ends the iteration; with Unavailable if there is a `failure` to tell. Safe to repeat."""
        if not self._closed:
            self._closed = True
            self._failure = failure
            self._waiting = {}
            self._ready.set()
            self._on_close(self)

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Batch:
        """Raises:
        Unavailable: there are no more forecasts, for the reason that it names.
        """
        await self._ready.wait()
        if self._failure:
            raise Unavailable(self._failure)
        if self._closed:
            raise StopAsyncIteration
        self._ready.clear()
        if self._behind:
            self._behind = False
            return Batch(self._snapshot(), snapshot=True)
        waiting, self._waiting = self._waiting, {}
        return Batch(list(waiting.values()), snapshot=False)
