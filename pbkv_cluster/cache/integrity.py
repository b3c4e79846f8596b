"""Checks that the cache does not contradict itself. Slow: for tests."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pbkv_cluster.cache.tree.node import ABSENT, Level, Node
from pbkv_cluster.cache.tree.prefix_tree import PrefixTree
from pbkv_cluster.core.blocks import KEY_BYTES, chain_keys
from pbkv_cluster.core.tokens import BLOCK_BYTES

if TYPE_CHECKING:
    from pbkv_cluster.cache.cache import KVCache


def check_tree(tree: PrefixTree) -> None:
    """Raises:
    AssertionError: a node, a link or a count is wrong.
    """
    nodes = list(tree.walk())
    assert len(nodes) == tree.nodes, "nodes miscounted"
    keys: dict[Node, bytes] = {}
    for node in nodes:
        assert node.parent is not None
        keys[node] = b"".join(chain_keys((keys.get(node.parent) or node.parent.keys)[-KEY_BYTES:], node.tokens))
        assert keys[node].startswith(node.keys), "block keys do not follow from the tokens"
        _check_node(node)
    for level in Level:
        assert tree.held[level] == sum(node.held[level] for node in nodes), f"{level.name} blocks miscounted"
        free = sum(node.held[level] for node in nodes if node.refs == 0)
        assert tree.evictable[level] == free, f"evictable {level.name} blocks miscounted"


def _check_node(node: Node) -> None:
    parent = node.parent
    assert parent is not None
    assert node.blocks > 0
    assert len(node.tokens) == node.blocks * BLOCK_BYTES
    assert parent.children[node.first_block()] is node
    assert node.gpu_children == sum(child.held[Level.GPU] > 0 for child in node.children.values()), "children miscounted"
    assert node.refs >= max((child.refs for child in node.children.values()), default=0), "locked below an unlocked node"
    for level in Level:
        places = node.slots[level]
        assert len(places) in ((0,) if node.held[level] == 0 else (node.blocks,))
        assert sum(slot != ABSENT for slot in places) == node.held[level]
    gpu, host = node.slots[Level.GPU], node.slots[Level.HOST]
    assert ABSENT not in gpu[: node.held[Level.GPU]], "the GPU does not hold a leading run"
    if node.held[Level.GPU] and not parent.is_root:
        assert parent.held[Level.GPU] == parent.blocks, "the GPU holds a node but not all of its parent"
    for block in range(node.held[Level.GPU], node.blocks):
        assert host, "a block lies nowhere"
        assert host[block] != ABSENT, "a block lies nowhere"
    if node.refs:
        assert node.held[Level.GPU] == node.blocks, "a running sequence's blocks are not on the GPU"
    for owner in node.owners:
        assert node in owner.nodes


def check_cache(cache: KVCache) -> None:
    """Raises:
    AssertionError: the tree is wrong, a slot has leaked or is used twice, or the owners and the tree disagree.
    """
    check_tree(cache.tree)
    cache.tiers.check_integrity()
    nodes = list(cache.tree.walk())
    for level in Level:
        used = [slot for node in nodes for slot in node.slots[level] if slot != ABSENT]
        assert len(set(used)) == len(used), f"a {level.name} slot is used twice"
        private = cache.tiers.pools[level].used_slots - len(used)
        assert private >= 0
        if cache.leases == 0:
            assert private == 0, f"{private} {level.name} slots leaked"
            assert all(node.refs == 0 for node in nodes), "a lock leaked"
            cache.tiers.pools[level].check_integrity(used)
    known = set(cache.workflows.all())
    for node in nodes:
        assert set(node.owners) <= known, "a node is owned by an ended workflow"
    for owner in known:
        assert all(owner in node.owners for node in owner.nodes)
