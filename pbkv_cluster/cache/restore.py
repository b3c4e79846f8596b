"""Rebuilds the prefix tree from blocks that a slower tier has kept while the process was away."""

from collections import defaultdict
from collections.abc import Iterable
from typing import NamedTuple

from pbkv_cluster.cache.tiers.tier import CacheTier
from pbkv_cluster.cache.tree.node import Node, new_slots
from pbkv_cluster.cache.tree.prefix_tree import PrefixTree
from pbkv_cluster.core.blocks import BlockLabel


class StoredBlock(NamedTuple):
    """A block that was found in a slot."""

    slot: int
    label: BlockLabel
    age_s: float  # since it was stored


def restore(tree: PrefixTree, tier: CacheTier, blocks: Iterable[StoredBlock], now: float) -> list[Node]:
    """Enters blocks in an empty cache. Those whose path is not complete are left out: nobody could match them.

    Args:
        tree: without nodes.
        tier: that has the blocks; its slots are free.
        blocks: in any order.
        now: seconds.

    Returns:
        The nodes, parents before their children.
    """
    newest: dict[bytes, StoredBlock] = {}
    for block in blocks:
        known = newest.get(block.label.key)
        if block.label.is_consistent and (known is None or block.age_s < known.age_s):
            newest[block.label.key] = block
    children: dict[bytes, list[StoredBlock]] = defaultdict(list)
    for block in newest.values():
        children[block.label.parent].append(block)
    namespaces = {block.label.namespace for block in newest.values()}
    nodes = []
    stack = [(tree.root_of(digest), first) for digest in namespaces for first in children[digest]]
    while stack:
        parent, block = stack.pop()
        run = [block]
        while len(following := children.get(run[-1].label.key, [])) == 1:
            run.append(following[0])
        node = tree.add_stored(
            parent,
            b"".join(each.label.tokens for each in run),
            b"".join(each.label.key for each in run),
            tier.index,
            new_slots(each.slot for each in run),
        )
        node.last_access = now - min(each.age_s for each in run)
        nodes.append(node)
        stack += [(node, each) for each in following]
    tier.pool.withdraw(new_slots(slot for node in nodes for slot in node.slots[tier.index]))
    return nodes
