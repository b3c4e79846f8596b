"""The eviction queues of all tiers."""

from collections.abc import Collection, Sequence

from pbkv_cluster.cache.eviction import EvictionQueue
from pbkv_cluster.cache.tiers.tier import CacheTier
from pbkv_cluster.cache.tree.node import GPU, Node


class EvictionOrder:
    """Ranks nodes wherever they are candidates. Tiers without capacity are left out."""

    def __init__(self, tiers: Sequence[CacheTier]) -> None:
        self._used = [tier for tier in tiers if tier.pool.capacity]
        self._queues = [tier.queue for tier in self._used]
        self._by_size = [tier.queue for tier in self._used if tier.ranked_by_size]
        self._by_workflow = [(tier.queue, tier.ranks) for tier in self._used if not tier.policy.steady]
        self._first_lru = len(tiers)  # number of the GPU's queue in the order of LRU, where that is kept

    @property
    def queues(self) -> Collection[EvictionQueue]:
        """The queues in use."""
        return self._queues

    def offer(self, node: Node) -> None:
        """Ranks a node anew in every queue."""
        if node.parent is not None:
            for queue in self._queues:
                queue.offer(node)

    def resized(self, node: Node) -> None:
        """Ranks a node anew where its rank depends on which of its blocks are left."""
        for queue in self._by_size:
            queue.offer(node)

    def rerank(self, nodes: Collection[Node]) -> None:
        """Ranks nodes anew where what their workflows do may have changed their values."""
        for queue, ranks in self._by_workflow:
            queue.offer_all(nodes, ranks)

    def keep_lru(self) -> None:
        """Keeps the order of LRU for every tier as well, from now on."""
        for tier in self._used:
            queue = tier.keep_lru(self._first_lru + tier.index)
            self._queues.append(queue)
            if tier.index != GPU:
                self._by_size.append(queue)  # copies may have become the only ones
