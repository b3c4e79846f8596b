"""Eviction order of one tier: a heap with versioned entries.

An entry is never searched for or moved. When a node's value changes a new entry is pushed and the old one, of a lower
version, is passed over when it surfaces. Choosing a victim costs O(log n) however large the tree is.

Ranks may be deferred until they are needed (`EvictionQueue.defer`): what is offered waits and is ranked all together.
"""

import heapq
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

from pbkv_cluster.cache.tree.node import Level, Node

_SLACK = 1024  # stale entries that are not worth a rebuild
_PENDING_MAX = 1024  # nodes that wait to be ranked; some may have left the tree meanwhile, and keep their memory


class Rank(NamedTuple):
    """Order of eviction, lowest first."""

    group: int  # copies of what a faster tier holds, then retired blocks, then active ones
    value: float
    last_access: float


class EvictionQueue:
    """Candidates of one level, in one order."""

    def __init__(
        self,
        level: Level,
        rank: Callable[[Node], Rank],
        is_candidate: Callable[[Node, Level], bool],
        number: int | None = None,
    ) -> None:
        """Args:
        level: whose blocks are to leave.
        rank: order among the candidates.
        is_candidate: whether blocks of a node can leave the level.
        number: which of `Node.versions` is this queue's; None: the level's.
        """
        self._level = level
        self._number = level if number is None else number
        self._rank = rank
        self._is_candidate = is_candidate
        self._heap: list[tuple[Rank, int, int, Node]] = []
        self._pushed = 0
        self._ranks: Callable[[Sequence[Node]], Iterable[Rank]] | None = None  # set: see `defer`
        self._pending: dict[Node, None] = {}  # to be ranked before the next victim is chosen
        self._live = 0  # upper bound on the valid entries, exact after a rebuild

    def __len__(self) -> int:
        return len(self._heap)

    def defer(self, ranks: Callable[[Sequence[Node]], Iterable[Rank]]) -> None:
        """From now on ranks nodes only when a victim is asked for, and then all that were offered since, together.

        For policies whose values change with time, so that late ranks are better ones, and cost less together.
        """
        self._ranks = ranks

    def offer(self, node: Node) -> None:
        """Ranks a node anew, if it is a candidate; its older entry no longer counts."""
        if self._ranks is not None:
            self._pending[node] = None
            if len(self._pending) >= _PENDING_MAX:
                self._rank_pending()
        elif self._is_candidate(node, self._level):
            self._push(node, self._rank(node))

    def offer_all(self, nodes: Iterable[Node], ranks: Callable[[Sequence[Node]], Iterable[Rank]]) -> None:
        """Ranks several nodes anew, as `offer` does, but all together."""
        if self._ranks is not None:
            for node in nodes:
                self.offer(node)
            return
        self._push_all(nodes, ranks)

    def _rank_pending(self) -> None:
        assert self._ranks is not None
        pending, self._pending = self._pending, {}
        self._push_all(pending, self._ranks)

    def _push_all(self, nodes: Iterable[Node], ranks: Callable[[Sequence[Node]], Iterable[Rank]]) -> None:
        candidates = [node for node in nodes if self._is_candidate(node, self._level)]
        if candidates:
            heap, number = self._heap, self._number
            for node, rank in zip(candidates, ranks(candidates), strict=True):
                node.versions[number] = version = node.versions[number] + 1
                self._pushed += 1
                heapq.heappush(heap, (rank, self._pushed, version, node))
            self._tidy()

    def first(self) -> tuple[Node, Rank] | None:
        """The next victim, still queued, or None."""
        if self._pending:
            self._rank_pending()
        while self._heap:
            rank, _, version, node = self._heap[0]
            if self._valid(version, node):
                return node, rank
            heapq.heappop(self._heap)
        return None

    def pop(self) -> Node | None:
        """Takes the next victim out of the queue, or returns None. Offer it again if it stays a candidate."""
        found = self.first()
        if found is None:
            return None
        heapq.heappop(self._heap)
        return found[0]

    def candidates(self) -> set[Node]:
        """Nodes with a valid entry. Slow: for tests."""
        if self._pending:
            self._rank_pending()
        return {entry[3] for entry in self._heap if self._valid(entry[2], entry[3])}

    def _push(self, node: Node, rank: Rank) -> None:
        node.versions[self._number] = version = node.versions[self._number] + 1
        self._pushed += 1
        heapq.heappush(self._heap, (rank, self._pushed, version, node))
        self._tidy()

    def _tidy(self) -> None:
        if len(self._heap) > 2 * self._live + _SLACK:
            self._rebuild()

    def _valid(self, version: int, node: Node) -> bool:
        return version == node.versions[self._number] and self._is_candidate(node, self._level)

    def _rebuild(self) -> None:
        number = self._number  # most entries are stale, and a call has its price
        newest = [entry for entry in self._heap if entry[2] == entry[3].versions[number]]
        self._heap = [entry for entry in newest if self._is_candidate(entry[3], self._level)]
        self._live = len(self._heap)
        heapq.heapify(self._heap)
