"""What waits for one receiver of forecasts: bounded, newest first to count, and in the way of nobody else."""

import asyncio
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple, Self

from pbkv_cluster.core.errors import Unavailable
from pbkv_cluster.core.forecasts.batch import Forecasts

_MOST_HELD = 4096


class Batch(NamedTuple):
    """What travels together."""

    forecasts: Forecasts
    snapshot: bool  # holds every open workflow: forget those it does not name
    access: bytes = b""  # a part of the access model


class _Waiting:
    """The newest forecast of each workflow, in the batches in which they came."""

    def __init__(self) -> None:
        self._places: dict[str, tuple[Forecasts, int]] = {}
        self._held = 0  # forecasts in these batches, those that have been replaced among them

    def __len__(self) -> int:
        return len(self._places)

    def add(self, forecasts: Forecasts, places: Sequence[int]) -> None:
        for at in places:
            self._places[forecasts.workflows[at]] = forecasts, at
        self._held += len(forecasts)
        if self._held > _MOST_HELD + 2 * len(self):
            all_that_count = self.joined().compact()
            self._places = {name: (all_that_count, at) for at, name in enumerate(all_that_count.workflows)}
            self._held = len(all_that_count)

    def joined(self) -> Forecasts:
        by_batch: dict[int, tuple[Forecasts, list[int]]] = {}
        for forecasts, at in self._places.values():
            by_batch.setdefault(id(forecasts), (forecasts, []))[1].append(at)
        parts = [each if places == list(range(len(each))) else each.take(places) for each, places in by_batch.values()]
        return Forecasts.joined(parts)


class Subscription:
    """An endless asynchronous iterator of batches, for one reader. The first is a snapshot.

    Only the newest forecast of a workflow waits, so a reader that is slow for a moment misses nothing that still counts. Where
    more than `limit` wait they are dropped, and the next batch is a snapshot made when the reader asks for it: one that never
    does costs neither memory nor work.

    Parts of the access model come behind the snapshot, one with a batch, so that no forecast waits for more than one of them.
    """

    def __init__(
        self,
        name: str,
        limit: int,
        snapshot: Callable[["Subscription"], Forecasts],
        on_close: Callable[["Subscription"], None],
        placed_only: bool = False,
    ) -> None:
        """Args:
        name: of the subscriber.
        limit: forecasts that wait; beyond, it is sent a snapshot.
        snapshot: makes one.
        on_close: told when it ends.
        placed_only: whoever offers forecasts leaves out those of workflows that have nothing on the worker of that name.
        """
        self.name = name
        self.placed_only = placed_only
        self._limit = limit
        self._snapshot = snapshot
        self._on_close = on_close
        self._waiting = _Waiting()
        self._parts: deque[bytes] = deque()
        self._behind = True
        self.closed = False
        self._failure = ""
        self._ready = asyncio.Event()
        self._ready.set()

    def offer(self, forecasts: Forecasts, places: Sequence[int]) -> bool:
        """Adds forecasts, those at some places; never waits.

        Returns whether this made the reader fall behind, to be sent a snapshot.
        """
        if self._behind or self.closed:
            return False
        self._waiting.add(forecasts, places)
        if len(self._waiting) > self._limit:
            self._waiting = _Waiting()
            self._behind = True
        self._ready.set()
        return self._behind

    @property
    def idle(self) -> bool:
        """Whether its reader has taken the snapshot and all parts that there were."""
        return not self._behind and not self._parts

    def offer_access(self, parts: Iterable[bytes]) -> None:
        """Adds parts of the access model. Whoever does waits until it is idle: that bounds them."""
        if not self.closed:
            self._parts.extend(parts)
            self._ready.set()

    def close(self, failure: str = "") -> None:
        """Ends the iteration; with Unavailable if there is a `failure` to tell. Safe to repeat."""
        if not self.closed:
            self.closed = True
            self._failure = failure
            self._waiting = _Waiting()
            self._parts.clear()
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
        if self.closed:
            raise StopAsyncIteration
        behind, self._behind = self._behind, False
        waiting, self._waiting = self._waiting, _Waiting()
        part = self._parts.popleft() if self._parts and not behind else b""
        if not self._parts:
            self._ready.clear()
        return Batch(self._snapshot(self) if behind else waiting.joined(), behind, part)
