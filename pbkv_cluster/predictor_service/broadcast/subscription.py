"""Forecasts that wait for one receiver: bounded, only the newest of each workflow, and independent of other receivers."""

import asyncio
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from enum import Enum
from typing import NamedTuple, Self

from pbkv_cluster.core.errors import Unavailable
from pbkv_cluster.core.forecasts.batch import Forecasts

MAX_REPLACED = 4096  # forecasts that are kept in batches although newer ones have replaced them, about


class Batch(NamedTuple):
    """What is sent together."""

    forecasts: Forecasts
    snapshot: bool  # it has every open workflow: the receiver forgets all others
    access: bytes = b""  # a part of the access model


class Offer(Enum):
    """What became of an offer of forecasts."""

    QUEUED = "queued"
    FELL_BEHIND = "fell_behind"  # too many wait: they are dropped, and a snapshot comes next
    NOT_NEEDED = "not_needed"  # a snapshot comes next, or the subscription is closed


class _Waiting:
    """The newest forecast of each workflow, in the batches in which they were made."""

    def __init__(self) -> None:
        self._positions: dict[str, tuple[Forecasts, int]] = {}  # by workflow: its batch, and where in it
        self._size = 0  # forecasts in these batches, with those that have been replaced

    def __len__(self) -> int:
        return len(self._positions)

    def add(self, forecasts: Forecasts, positions: Sequence[int]) -> None:
        for at in positions:
            self._positions[forecasts.workflows[at]] = forecasts, at
        self._size += len(forecasts)
        if self._size > MAX_REPLACED + 2 * len(self):
            newest = self.joined().compact()
            self._positions = {name: (newest, at) for at, name in enumerate(newest.workflows)}
            self._size = len(newest)

    def joined(self) -> Forecasts:
        by_batch: dict[int, tuple[Forecasts, list[int]]] = {}
        for forecasts, at in self._positions.values():
            by_batch.setdefault(id(forecasts), (forecasts, []))[1].append(at)
        parts = [each if chosen == list(range(len(each))) else each.take(chosen) for each, chosen in by_batch.values()]
        return Forecasts.joined(parts)


class Subscription:
    """An endless asynchronous iterator of batches, for one reader. The first is a snapshot.

    Only the newest forecast of a workflow waits, so a reader that is slow for a moment misses nothing that matters. If more
    than `limit` wait, they are dropped, and the next batch is a snapshot made when the reader asks for it: a reader that never
    asks costs neither memory nor work.

    Parts of the access model follow the snapshot, one in each batch, so that no forecast waits for more than one of them.
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
        limit: forecasts that may wait; beyond, the subscriber is sent a snapshot.
        snapshot: makes one.
        on_close: called when the subscription ends.
        placed_only: only forecasts of workflows that have had steps on the worker of that name are to be offered.
        """
        self.name = name
        self.placed_only = placed_only
        self._limit = limit
        self._snapshot = snapshot
        self._on_close = on_close
        self._waiting = _Waiting()
        self._parts: deque[bytes] = deque()
        self._snapshot_due = True
        self.closed = False
        self._failure = ""
        self._ready = asyncio.Event()
        self._ready.set()

    def offer(self, forecasts: Forecasts, positions: Sequence[int]) -> Offer:
        """Adds the forecasts at the given positions; never waits."""
        if self._snapshot_due or self.closed:
            return Offer.NOT_NEEDED
        self._waiting.add(forecasts, positions)
        if len(self._waiting) > self._limit:
            self._waiting = _Waiting()
            self._snapshot_due = True
        self._ready.set()
        return Offer.FELL_BEHIND if self._snapshot_due else Offer.QUEUED

    @property
    def idle(self) -> bool:
        """Whether its reader has taken the snapshot and all parts of the access model."""
        return not self._snapshot_due and not self._parts

    def offer_access(self, parts: Iterable[bytes]) -> None:
        """Adds parts of the access model. The caller waits until the subscription is idle, which bounds them."""
        if not self.closed:
            self._parts.extend(parts)
            self._ready.set()

    def close(self, failure: str = "") -> None:
        """Ends the iteration; with Unavailable if there is a `failure`. May be called again."""
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
        Unavailable: there will be no more forecasts, for the reason given to `close`.
        """
        await self._ready.wait()
        if self._failure:
            raise Unavailable(self._failure)
        if self.closed:
            raise StopAsyncIteration
        snapshot_due, self._snapshot_due = self._snapshot_due, False
        waiting, self._waiting = self._waiting, _Waiting()
        part = self._parts.popleft() if self._parts and not snapshot_due else b""
        if not self._parts:
            self._ready.clear()
        return Batch(self._snapshot(self) if snapshot_due else waiting.joined(), snapshot_due, part)
