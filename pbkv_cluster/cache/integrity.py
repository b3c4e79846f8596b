"""Checks that the cache does not contradict itself. Slow: for tests."""

from __future__ import annotations

from collections.abc import Collection

from pbkv_cluster.cache.owners import Workflows
from pbkv_cluster.cache.sequence.block_table import BlockTable
from pbkv_cluster.cache.tiers.tiers import Tiers
from pbkv_cluster.cache.tree.node import ABSENT, GPU, Level, Node
from pbkv_cluster.cache.tree.prefix_tree import PrefixTree, lineage
from pbkv_cluster.core.blocks import KEY_BYTES, chain_keys
from pbkv_cluster.core.tokens import BLOCK_BYTES


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


def check_cache(tree: PrefixTree, tiers: Tiers, workflows: Workflows, tables: Collection[BlockTable]) -> None:
    """Args:
        tree: the cache's.
        tiers: of its blocks.
        workflows: that own nodes.
        tables: of all running sequences.

    Raises:
        AssertionError: the tree is wrong, a slot has leaked or is used twice, or owners, tables and tree disagree.
    """
    check_tree(tree)
    tiers.check_integrity()
    nodes = list(tree.walk())
    for table in tables:
        _check_table(table)
    for level in Level:
        used = [slot for node in nodes for slot in node.slots[level] if slot != ABSENT]
        if level is GPU:
            for table in tables:
                used.extend(table.own_slots)
        assert len(set(used)) == len(used), f"a {level.name} slot is used twice"
        assert tiers.pools[level].used_slots == len(used), f"{level.name} slots leaked"
        tiers.pools[level].check_integrity(used)
    assert sum(node.refs for node in nodes) == sum(len(_path(table)) for table in tables), "a lock leaked"
    known = set(workflows.all())
    for node in nodes:
        assert set(node.owners) <= known, "a node is owned by an ended workflow"
    for owner in known:
        assert all(owner in node.owners for node in owner.nodes)


def _check_table(table: BlockTable) -> None:
    at = 0
    for each in table.ranges:
        assert each.node is not None
        assert each.start == at < each.stop, "a range does not follow the one before it"
        at = each.stop
        assert at == sum(node.blocks for node in lineage(each.node)), "a node does not end where its range does"
    assert at == table.committed <= len(table)
    on_path = [slot for node in reversed(_path(table)) for slot in node.slots[GPU]]
    assert on_path == list(table.slots[:at]), "the table names other slots than the tree"


def _path(table: BlockTable) -> list[Node]:
    return [] if table.node.is_root else list(lineage(table.node))
