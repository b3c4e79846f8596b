"""Checks that the cache does not contradict itself. Slow: for tests."""

from collections import Counter
from collections.abc import Collection

from pbkv_cluster.cache.owners import ActiveWorkflows
from pbkv_cluster.cache.sequence.block_table import BlockTable
from pbkv_cluster.cache.tiers.tiers import Tiers
from pbkv_cluster.cache.tree.node import ABSENT, GPU, Node
from pbkv_cluster.cache.tree.prefix_tree import PrefixTree, lineage
from pbkv_cluster.core.blocks import KEY_BYTES, chain_keys
from pbkv_cluster.core.tokens import BLOCK_BYTES


def check_cache(tree: PrefixTree, tiers: Tiers, workflows: ActiveWorkflows, tables: Collection[BlockTable]) -> None:
    """Args:
        tree: the cache's.
        tiers: of its blocks.
        workflows: that own nodes.
        tables: of all running sequences.

    Raises:
        AssertionError: the tree is wrong, a slot has leaked or is used twice, or owners, tables and tree disagree.
    """
    check_tree(tree)
    nodes = list(tree.walk())
    for queue in tiers.order.queues:
        expected = {node for node in nodes if tree.is_candidate(node, queue.tier)}
        assert {node for node, _ in queue.entries()} == expected, f"a queue of tier {queue.tier} lacks candidates"
    for table in tables:
        _check_table(table)
    for tier in tiers:
        used = [slot for node in nodes for slot in node.slots[tier.index] if slot != ABSENT]
        if tier is tiers.gpu:
            for table in tables:
                used.extend(table.own_slots)
        tier.pool.check_integrity(used)
    assert sum(node.refs for node in nodes) == sum(len(_path(table)) for table in tables), "a lock leaked"
    leased = Counter(tenant for node in nodes for tenant in node.tenants for _ in range(node.blocks))
    assert tree.leased == leased, "leased blocks are miscounted"
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
    for tier, held in enumerate(tree.held):
        assert held == sum(node.held[tier] for node in nodes), f"blocks of tier {tier} miscounted"
        unused = sum(node.held[tier] for node in nodes if node.refs == 0)
        assert tree.evictable[tier] == unused, f"evictable blocks of tier {tier} miscounted"


def _check_node(node: Node) -> None:
    parent = node.parent
    assert parent is not None
    assert node.blocks > 0
    assert len(node.tokens) == node.blocks * BLOCK_BYTES
    assert parent.children[node.first_block()] is node
    for tier, count in enumerate(node.held_children):
        assert count == sum(any(child.held[: tier + 1]) for child in node.children.values()), "children miscounted"
    assert node.refs >= max((child.refs for child in node.children.values()), default=0), "locked below an unlocked node"
    for tier, slots in enumerate(node.slots):
        assert len(slots) in ((0,) if node.held[tier] == 0 else (node.blocks,))
        assert sum(slot != ABSENT for slot in slots) == node.held[tier]
    assert ABSENT not in node.slots[GPU][: node.held[GPU]], "the GPU does not hold a leading run"
    if node.held[GPU] and not parent.is_root:
        assert parent.held[GPU] == parent.blocks, "the GPU holds a node but not all of its parent"
    for block in range(node.blocks):
        assert any(node.holds(tier, block) for tier in range(len(node.held))), "no tier holds a block"
    if node.refs:
        assert node.held[GPU] == node.blocks, "a running sequence's blocks are not on the GPU"
    for block in node.staged.numbers() if node.staged is not None else ():
        assert node.holds(GPU, block) or node.holds(GPU + 1, block), "a staged block has gone, and its end was not counted"
    for owner in node.owners:
        assert node in owner.nodes
