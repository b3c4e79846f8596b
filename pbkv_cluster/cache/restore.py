"""Rebuilds the prefix tree from blocks that slower tiers have kept while the process was away."""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import groupby
from typing import NamedTuple

from pbkv_cluster.cache.tiers.tier import CacheTier
from pbkv_cluster.cache.tree.node import ABSENT, Node, Slots, new_slots
from pbkv_cluster.cache.tree.prefix_tree import PrefixTree
from pbkv_cluster.core.blocks import BlockLabel


class StoredBlock(NamedTuple):
    """A block that was found in a slot."""

    slot: int
    label: BlockLabel
    age_s: float  # since it was stored


def restore(
    tree: PrefixTree, tiers: Sequence[CacheTier], blocks: Mapping[CacheTier, Iterable[StoredBlock]], now: float
) -> list[Node]:
    """Enters blocks in an empty cache. Those whose path is not complete are left out: nobody could match them.

    Args:
        tree: without nodes.
        tiers: all of them.
        blocks: that each slower tier has, in any order; the tiers' slots are free.
        now: seconds.

    Returns:
        The nodes, parents before their children.
    """
    found: dict[bytes, dict[CacheTier, StoredBlock]] = defaultdict(dict)
    for tier, stored in blocks.items():
        for block in stored:
            if block.label.is_consistent:
                known = found[block.label.key].get(tier)
                if known is None or block.age_s < known.age_s:
                    found[block.label.key][tier] = block
    children: dict[bytes, list[BlockLabel]] = defaultdict(list)
    for by_tier in found.values():
        label = next(iter(by_tier.values())).label
        children[label.parent].append(label)
    namespaces = {next(iter(by_tier.values())).label.namespace for by_tier in found.values()}
    nodes = []
    stack = [(tree.root_of(digest), first) for digest in namespaces for first in children[digest]]
    while stack:
        parent, label = stack.pop()
        run = [label]
        while len(following := children.get(run[-1].key, [])) == 1:
            run.append(following[0])
        node = tree.add_stored(parent, b"".join(each.tokens for each in run), b"".join(each.key for each in run))
        places = [found[each.key] for each in run]
        for tier in tiers:
            slots = [by_tier[tier].slot if tier in by_tier else ABSENT for by_tier in places]
            for start, run_of_slots in _runs(slots):
                tree.place(node, tier.index, start, run_of_slots)
        node.last_access = now - min(block.age_s for by_tier in places for block in by_tier.values())
        nodes.append(node)
        stack += [(node, each) for each in following]
    for tier in blocks:
        tier.pool.withdraw(new_slots(slot for node in nodes for slot in node.slots[tier.index] if slot != ABSENT))
    return nodes


def _runs(slots: Sequence[int]) -> Iterator[tuple[int, Slots]]:
    """The slots that are not ABSENT, in runs without a gap: index of the first of each, and the slots."""
    start = 0
    for exists, some in groupby(slots, key=lambda slot: slot != ABSENT):
        run = new_slots(some)
        if exists:
            yield start, run
        start += len(run)
