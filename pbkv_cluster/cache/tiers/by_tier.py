"""Counts the blocks of a path by the tiers that hold them."""

from collections import Counter
from collections.abc import Sequence

from pbkv_cluster.cache.tiers.tier import CacheTier
from pbkv_cluster.cache.tree.node import GPU, Node
from pbkv_cluster.core.usage import Tier


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
