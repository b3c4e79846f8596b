"""One tier of a cache: its slots, and the order in which blocks leave it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from pbkv_cluster.cache.eviction import ACTIVE, COPY, LEASED, RETIRED, EvictionQueue, Rank
from pbkv_cluster.cache.policies.base import ReusePolicy
from pbkv_cluster.cache.tiers.pool import BlockPool
from pbkv_cluster.cache.tree.node import GPU, Node
from pbkv_cluster.cache.tree.prefix_tree import PrefixTree
from pbkv_cluster.core.blocks import BlockLabel
from pbkv_cluster.core.clock import Clock
from pbkv_cluster.core.usage import Tier


class CacheTier:
    """A kind of memory that holds blocks. Tiers form a list from the fastest, the GPU, to the slowest."""

    def __init__(self, index: int, kind: Tier, capacity: int, policy: ReusePolicy, tree: PrefixTree, clock: Clock) -> None:
        """Args:
        index: position in the list, and in the lists of `Node` and `PrefixTree`.
        kind: of memory.
        capacity: blocks; 0: the tier is not used.
        policy: values the nodes for this tier.
        tree: whose nodes it holds.
        clock: for the policy.
        """
        self.index = index
        self.kind = kind
        self.pool = BlockPool(kind, capacity)
        self.policy = policy
        self.codes = _Codes(kind) if index != GPU else _GpuCodes(kind)
        self.slower: CacheTier | None = None  # the next in the list that has any capacity
        self.queue = EvictionQueue(index, self.rank, tree.is_candidate, index, self.ranks if policy.drifts else None)
        self.lru: EvictionQueue | None = None  # the same candidates in the order of LRU, where that is kept
        self.lru_active = False  # blocks leave in the order of LRU; needs `keep_lru`, before the first block
        self.demotions: dict[int, int] = {}  # planned copies: slot of the slower tier to the slot here that it is copied from
        self.labels: dict[int, BlockLabel] = {}  # of the blocks of planned copies, by the slot of the slower tier
        self.dropped: set[int] = set()  # targets of planned copies whose blocks have been dropped since
        self._clock = clock
        self._tree = tree
        self._one_group = index == GPU and not policy.retired_first

    def keep_lru(self, number: int) -> EvictionQueue:
        """Keeps the candidates in the order of LRU as well, from now on. Returns that queue.

        Args:
            number: index of the queue in `Node.versions`.
        """
        self.lru = EvictionQueue(self.index, self.recency, self._tree.is_candidate, number)
        return self.lru

    @property
    def active_queue(self) -> EvictionQueue:
        """The queue in whose order blocks leave."""
        if not self.lru_active:
            return self.queue
        assert self.lru is not None, "`keep_lru` was not called"
        return self.lru

    @property
    def ranked_by_size(self) -> bool:
        """Whether a node's rank changes with the number of its blocks here: copies may have become the only ones."""
        return self.index != GPU or self.policy.positional

    def rank(self, node: Node) -> Rank:
        """The rank of a candidate."""
        return Rank(self._group(node), self.policy.value(node, self._clock.now()), node.last_access)

    def ranks(self, nodes: Sequence[Node]) -> list[Rank]:
        """The ranks of several candidates."""
        values = self.policy.values(nodes, self._clock.now())
        if self._one_group:
            return [
                Rank(LEASED if node.leases else ACTIVE, value, node.last_access)
                for node, value in zip(nodes, values, strict=True)
            ]
        return [Rank(self._group(node), value, node.last_access) for node, value in zip(nodes, values, strict=True)]

    def rank_of_demoted(self, node: Node) -> Rank:
        """The rank that blocks of a node will have in the active queue once the faster tiers have none of them."""
        if self.lru_active:
            return Rank(LEASED if node.leases else ACTIVE, node.last_access, node.last_access)
        return Rank(self._group_alone(node), self.policy.value(node, self._clock.now()), node.last_access)

    def recency(self, node: Node) -> Rank:
        """The rank of a candidate under LRU."""
        group = COPY if self._has_copies(node) else LEASED if node.leases else ACTIVE
        return Rank(group, node.last_access, node.last_access)

    def _group(self, node: Node) -> int:
        if self._one_group:
            return LEASED if node.leases else ACTIVE
        return COPY if self._has_copies(node) else self._group_alone(node)

    def _has_copies(self, node: Node) -> bool:
        return self.index != GPU and not node.demoted_early and node.copies(self.index) > 0

    def _group_alone(self, node: Node) -> int:
        if node.leases:
            return LEASED
        return RETIRED if self.policy.retired_first and node.retired else ACTIVE


class _Codes:
    """Reason codes of what is decided about a tier's blocks; pairs are of active and of retired nodes."""

    def __init__(self, kind: Tier) -> None:
        self.evict: tuple[str, str] | None = None
        self.demote = f"{kind.value}_demote"
        self.demote_skipped = f"{kind.value}_demote_skipped_slower"
        self.drop = (f"{kind.value}_drop_active", f"{kind.value}_drop_retired")
        self.drop_copy = f"{kind.value}_drop_copy"


class _GpuCodes(_Codes):
    """Those of the GPU have no prefix, and tell why a block was evicted but not why it was dropped."""

    def __init__(self, kind: Tier) -> None:
        super().__init__(kind)
        self.evict = ("evict_active", "evict_retired")
        self.demote = "demote"
        self.demote_skipped = "demote_skipped_slower"
        self.drop = ("drop", "drop")


def blocks_by_tier(tiers: Sequence[CacheTier], path: Sequence[Node], blocks: int) -> dict[Tier, int]:
    """The first blocks of a path, counted by the fastest tier that holds each. Tiers that hold none are left out.

    Prefetched blocks that have not arrived count where they come from, which may be the memory of other workers.
    """
    counts = [0] * len(tiers)
    late = Counter[Tier]()
    for node in path:
        own = min(blocks, node.blocks)
        if node.prefetched:
            late += _late(tiers[GPU], node, own)
        if own <= node.held[GPU]:
            counts[GPU] += own
        else:
            for tier, first, stop in node.runs(0, own):
                counts[tier] += stop - first
        blocks -= own
    by_tier = {tier.kind: count for tier, count in zip(tiers, counts, strict=True)}
    if late:
        by_tier[tiers[GPU].kind] -= late.total()
        for kind, count in late.items():
            by_tier[kind] = by_tier.get(kind, 0) + count
    return {kind: count for kind, count in by_tier.items() if count}


def _late(gpu: CacheTier, node: Node, blocks: int) -> Counter[Tier]:
    """Of a node's first blocks, those that were prefetched and have not arrived, by where they come from."""
    held = node.held[GPU]
    return gpu.pool.arriving(node.slots[GPU][held - node.prefetched : min(held, blocks)])
