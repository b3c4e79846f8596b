"""Rebuilds the prefix tree from blocks that slower tiers have kept while the process was away."""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import groupby

from pbkv_cluster.cache.tiers.tiers import Tiers
from pbkv_cluster.cache.tree.node import ABSENT, Slots, new_slots
from pbkv_cluster.cache.tree.prefix_tree import PrefixTree
from pbkv_cluster.core.blocks import BlockLabel, StoredBlock
from pbkv_cluster.core.usage import Tier


def restore(tree: PrefixTree, tiers: Tiers, blocks: Mapping[Tier, Iterable[StoredBlock]], now: float) -> int:
    """Enters blocks in an empty cache. Those whose path is not complete are left out: nobody could match them.

    Args:
        tree: without nodes.
        tiers: of the cache; the slots of those that have blocks are free.
        blocks: that slower tiers have, in any order.
        now: seconds.

    Returns:
        The blocks that can be matched again; one in two tiers is counted once.
    """
    found = _newest(blocks)
    children: dict[bytes, list[BlockLabel]] = defaultdict(list)
    for by_tier in found.values():
        label = next(iter(by_tier.values())).label
        children[label.parent].append(label)
    namespaces = {label.namespace for labels in children.values() for label in labels}
    nodes = []
    stack = [(tree.root_of(digest), first) for digest in namespaces for first in children.get(digest, [])]
    while stack:
        parent, label = stack.pop()
        run = [label]
        while len(following := children.get(run[-1].key, [])) == 1:
            run.append(following[0])
        node = tree.add_stored(parent, b"".join(each.tokens for each in run), b"".join(each.key for each in run))
        places = [found[each.key] for each in run]
        for kind in blocks:
            slots = [by_tier[kind].slot if kind in by_tier else ABSENT for by_tier in places]
            for start, held in _runs(slots):
                tree.place(node, tiers[kind].index, start, held)
        node.last_access = now - min(block.age_s for by_tier in places for block in by_tier.values())
        nodes.append(node)  # parents before their children
        stack += [(node, each) for each in following]
    for tier in map(tiers.__getitem__, blocks):
        tier.pool.withdraw(new_slots(slot for node in nodes for slot in node.slots[tier.index] if slot != ABSENT))
    for node in nodes:
        tiers.offer(node)
        tiers.note(node, 0, node.blocks)
        tiers.log.note("restore", node, range(node.blocks))
    return sum(node.blocks for node in nodes)


def _newest(blocks: Mapping[Tier, Iterable[StoredBlock]]) -> Mapping[bytes, Mapping[Tier, StoredBlock]]:
    """The newest copy of each block in each tier, by key; what has a wrong label is left out."""
    found: dict[bytes, dict[Tier, StoredBlock]] = defaultdict(dict)
    for kind, stored in blocks.items():
        for block in stored:
            if block.label.is_consistent:
                known = found[block.label.key].get(kind)
                if known is None or block.age_s < known.age_s:
                    found[block.label.key][kind] = block
    return found


def _runs(slots: Sequence[int]) -> Iterator[tuple[int, Slots]]:
    """The slots that are not ABSENT, in runs without a gap: index of the first of each, and the slots."""
    start = 0
    for exists, some in groupby(slots, key=lambda slot: slot != ABSENT):
        run = new_slots(some)
        if exists:
            yield start, run
        start += len(run)
