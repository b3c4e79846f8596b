"""The queue of a worker: fair between tenants, in a given order within each."""

import heapq
from collections.abc import Iterator, Mapping
from typing import Generic, NamedTuple, TypeVar

from pbkv_cluster.gpu_worker.engine.queue.shares import Shares

T = TypeVar("T")


class Rank(NamedTuple):
    """Place of a step among its tenant's own; the lowest goes first."""

    start: float  # seconds, see `order.py`
    arrival: int  # number of the step, which settles ties


class StepQueue(Generic[T]):
    """Steps that wait. Which one is next is decided once, and again only when a step has come, gone or been taken."""

    def __init__(self, weights: Mapping[str, float]) -> None:
        """`weights`: of tenants; all others have 1."""
        self.shares = Shares(weights)
        self._heaps: dict[str, list[tuple[Rank, T]]] = {}  # of the tenants that wait
        self._next: str | None = None  # tenant whose first step is next; None: undecided
        self._length = 0

    def __len__(self) -> int:
        return self._length

    def __iter__(self) -> Iterator[T]:
        return (item for heap in self._heaps.values() for _, item in heap)

    def waiting_of(self, tenant: str) -> int:
        """Steps of one tenant."""
        return len(self._heaps.get(tenant, ()))

    def add(self, item: T, tenant: str, rank: Rank) -> None:
        """A step begins to wait.

        Args:
            item: the step; its rank must be its own.
            tenant: whose it is.
            rank: among those of the tenant.
        """
        if tenant not in self._heaps:
            self._heaps[tenant] = []
            self.shares.begins_to_wait(tenant)
        heapq.heappush(self._heaps[tenant], (rank, item))
        self._length += 1
        self._next = None

    def remove(self, item: T, tenant: str) -> bool:
        """Takes a step out. Returns whether it was there."""
        heap = self._heaps.get(tenant, [])
        rest = [entry for entry in heap if entry[1] is not item]
        if len(rest) == len(heap):
            return False
        heapq.heapify(rest)
        self._replace(tenant, rest)
        return True

    def head(self) -> T:
        """The step that is next.

        Raises:
            ValueError: none waits.
        """
        if self._next is None:
            self._next = self.shares.next_of(self._heaps)
        return self._heaps[self._next][0][1]

    def take(self) -> T:
        """The same; it no longer waits."""
        item = self.head()
        assert self._next is not None
        tenant = self._next
        heapq.heappop(self._heaps[tenant])
        self._replace(tenant, self._heaps[tenant])
        self.shares.forget(self._heaps)
        return item

    def first(self, most: int) -> list[T]:
        """About the next `most` steps, in turns of the tenants."""
        turns = [iter(heapq.nsmallest(most, self._heaps[tenant])) for tenant in self.shares.in_order(self._heaps)]
        found: list[T] = []
        while turns and len(found) < most:
            turn = turns.pop(0)
            if (entry := next(turn, None)) is not None:
                found.append(entry[1])
                turns.append(turn)
        return found

    def _replace(self, tenant: str, heap: list[tuple[Rank, T]]) -> None:
        if heap:
            self._heaps[tenant] = heap
        else:
            self._heaps.pop(tenant, None)
        self._length = sum(map(len, self._heaps.values()))
        self._next = None
