"""Counts the blocks of a path by the tiers that hold them."""

from collections.abc import Sequence

from pbkv_cluster.cache.tiers.tier import CacheTier
from pbkv_cluster.cache.tree.node import GPU, Node
from pbkv_cluster.core.usage import Tier


def blocks_by_tier(tiers: Sequence[CacheTier], path: Sequence[Node], blocks: int) -> dict[Tier, int]:
    """The first blocks of a path, counted by the fastest tier that holds each. Tiers that hold none are left out.

    Prefetched blocks that have not arrived count in the tier after the GPU.
    """
    counts = [0] * len(tiers)
    for node in path:
        own = min(blocks, node.blocks)
        if late := _late(tiers[GPU], node, own):
            slower = tiers[GPU].slower
            assert slower is not None
            counts[GPU] -= late
            counts[slower.index] += late
        if own <= node.held[GPU]:
            counts[GPU] += own
        else:
            for tier, first, stop in node.runs(0, own):
                counts[tier] += stop - first
        blocks -= own
    return {tier.kind: count for tier, count in zip(tiers, counts, strict=True) if count}


def _late(gpu: CacheTier, node: Node, blocks: int) -> int:
    """Of a node's first blocks, those that were prefetched and have not arrived."""
    if not node.prefetched:
        return 0
    held = node.held[GPU]
    return gpu.pool.arriving(node.slots[GPU][held - node.prefetched : min(held, blocks)])
