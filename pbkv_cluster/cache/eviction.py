"""Eviction order of one tier: a heap with versioned entries.

An entry is never searched for or moved. When a node's value changes a new entry is pushed; the old one, of a lower version, is
skipped when it surfaces. Choosing a victim costs O(log n) however large the tree is.

A queue may defer: nodes that are offered wait, and are ranked all together when a victim is asked for. That suits policies
whose values change with time: late ranks are better ones, and cost less together. Each time, a few others are ranked anew, in
turn, so that no node is kept for long by what it was worth once.
"""

import heapq
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from typing import NamedTuple, TypeAlias

from pbkv_cluster.cache.tree.node import Node

_SLACK = 1024  # stale entries that are not worth a rebuild
_PENDING_MAX = 1024  # nodes that wait to be ranked; some may have left the tree meanwhile, and keep their memory

_REFRESHED_MAX = 16  # candidates that are ranked anew together with those that have been offered; never more than these are

COPY, RETIRED, ACTIVE, LEASED = range(4)  # groups of a rank


class Rank(NamedTuple):
    """Order of eviction, lowest first."""

    group: int  # copies of what a faster tier holds, then retired blocks, then active ones, then leased ones
    value: float
    last_access: float


Entry: TypeAlias = tuple[Rank, int, int, Node]
"""Of a queue: rank, number of the entry, version, node."""

Ranking = Callable[[Sequence[Node]], Iterable[Rank]]
"""Gives candidates their ranks, in order."""


class EvictionQueue:
    """Candidates of one tier, in one order."""

    def __init__(
        self,
        tier: int,
        rank: Callable[[Node], Rank],
        is_candidate: Callable[[Node, int], bool],
        number: int,
        deferred: Ranking | None = None,
    ) -> None:
        """Args:
        tier: that blocks are to leave.
        rank: order among the candidates.
        is_candidate: whether a tier can lose blocks of a node.
        number: index of this queue in `Node.versions`.
        deferred: ranks the nodes that have been offered since the last victim; None: each is ranked as it is offered.
        """
        self.tier = tier
        self.rank = rank
        self._number = number
        self._is_candidate = is_candidate
        self._heap: list[Entry] = []
        self._pushed = 0
        self._deferred = deferred
        self._pending: dict[Node, None] = {}  # offered and not ranked yet
        self._valid_at_rebuild = 0  # entries
        self._turn = 0  # place in the heap of the entry that was refreshed last

    def offer(self, node: Node) -> None:
        """Ranks a node anew, if it is a candidate; its older entry no longer counts."""
        if self._deferred is not None:
            self._pending[node] = None
            if len(self._pending) >= _PENDING_MAX:
                self._rank_pending()
        elif self._is_candidate(node, self.tier):
            number, rank = self._number, self.rank(node)
            node.versions[number] = version = node.versions[number] + 1
            self._pushed += 1
            heapq.heappush(self._heap, (rank, self._pushed, version, node))
            if len(self._heap) > 2 * self._valid_at_rebuild + _SLACK:
                self._rebuild()

    def offer_all(self, nodes: Iterable[Node], ranks: Ranking) -> None:
        """Ranks several nodes anew, as `offer` does, but computes their ranks together."""
        if self._deferred is None:
            self._push(nodes, ranks)
        else:
            for node in nodes:
                self.offer(node)

    def _rank_pending(self) -> None:
        assert self._deferred is not None
        self._refresh()
        pending, self._pending = self._pending, {}
        self._push(pending, self._deferred)

    def _refresh(self) -> None:
        """Offers a few candidates again, whichever come next in the heap: after a while, every one has had its turn."""
        heap, number = self._heap, self._number
        for _ in range(min(_REFRESHED_MAX, len(self._pending), len(heap))):
            self._turn = (self._turn + 1) % len(heap)
            _, _, version, node = heap[self._turn]
            if version == node.versions[number]:
                self._pending[node] = None

    def _push(self, nodes: Iterable[Node], ranks: Ranking) -> None:
        candidates = [node for node in nodes if self._is_candidate(node, self.tier)]
        if candidates:
            heap, number = self._heap, self._number
            for node, rank in zip(candidates, ranks(candidates), strict=True):
                node.versions[number] = version = node.versions[number] + 1
                self._pushed += 1
                heapq.heappush(heap, (rank, self._pushed, version, node))
            if len(heap) > 2 * self._valid_at_rebuild + _SLACK:
                self._rebuild()

    def first(self, besides: Node | None = None) -> tuple[Node, Rank] | None:
        """The next victim, still queued, or None. It is not `besides`."""
        if self._pending:
            self._rank_pending()
        heap, number, aside, found = self._heap, self._number, None, None
        while heap:
            rank, _, version, node = heap[0]
            if version == node.versions[number] and self._is_candidate(node, self.tier):
                if node is not besides:
                    found = node, rank
                    break
                aside = heap[0]
            heapq.heappop(heap)
        if aside is not None:
            heapq.heappush(heap, aside)
        return found

    def in_order(self) -> Iterator[tuple[Node, Rank]]:
        """The next victims, in order. None may be offered or evicted meanwhile."""
        if self._pending:
            self._rank_pending()
        heap = self._heap
        ahead = [(entry, 0) for entry in heap[:1]]  # a heap of those whose parents in the heap have been seen
        while ahead:
            entry, at = heapq.heappop(ahead)
            for child in range(2 * at + 1, min(2 * at + 3, len(heap))):
                heapq.heappush(ahead, (heap[child], child))
            if self.counts(entry):
                yield entry[3], entry[0]

    def rank_next(self, number: int) -> None:
        """Ranks so many of the next victims anew, together, if time may have changed their values."""
        if self._deferred is not None:
            self._pending.update(dict.fromkeys(node for node, _ in islice(self.in_order(), number)))

    def snapshot(self) -> list[Entry]:
        """All entries, in no order, also those that no longer count: see `counts`. Changes no rank.

        Nodes that wait to be ranked have the rank that they would be given now.
        """
        if self._deferred is None or not self._pending:
            return self._heap.copy()
        waiting = [node for node in self._pending if self._is_candidate(node, self.tier)]
        ranked = [
            (rank, 0, node.versions[self._number], node) for node, rank in zip(waiting, self._deferred(waiting), strict=True)
        ]
        return [entry for entry in self._heap if entry[3] not in self._pending] + ranked

    def counts(self, entry: Entry) -> bool:
        """Whether an entry is the latest of its node, which the tier can lose blocks of."""
        return entry[2] == entry[3].versions[self._number] and self._is_candidate(entry[3], self.tier)

    def entries(self) -> Iterator[tuple[Node, Rank]]:
        """Every candidate and the rank that it was last given, in no order. Slow: for tests."""
        if self._pending:
            self._rank_pending()
        for entry in self._heap:
            if self.counts(entry):
                yield entry[3], entry[0]

    def _rebuild(self) -> None:
        number = self._number  # most entries are stale: their versions are compared first, since that needs no call
        newest = [entry for entry in self._heap if entry[2] == entry[3].versions[number]]
        self._heap = [entry for entry in newest if self._is_candidate(entry[3], self.tier)]
        self._valid_at_rebuild = len(self._heap)
        heapq.heapify(self._heap)
