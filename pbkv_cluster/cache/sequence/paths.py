"""Paths of the prefix tree: splits, locks and uses of their nodes, and what must follow each in the queues and the owners."""

import math

from pbkv_cluster.cache.owners import ActiveWorkflows
from pbkv_cluster.cache.sequence.handle import CacheHandle
from pbkv_cluster.cache.tiers.tiers import Tiers
from pbkv_cluster.cache.tree.aged_uses import aged_uses
from pbkv_cluster.cache.tree.node import Node
from pbkv_cluster.cache.tree.prefix_tree import Match, PrefixTree
from pbkv_cluster.reuse.record.prefix_popularity import PrefixPopularity, PrefixStat
from pbkv_cluster.reuse.record.segment import Segment


class Paths:
    """The tree, with the eviction queues and owners kept in step."""

    def __init__(
        self,
        tree: PrefixTree,
        tiers: Tiers,
        workflows: ActiveWorkflows,
        popularity: PrefixPopularity,
        half_life_s: float,
    ) -> None:
        """Args:
        tree: whose paths they are.
        tiers: where their blocks lie.
        workflows: that may own nodes.
        popularity: knows how many workflows have begun.
        half_life_s: of the count of uses, see `aged_uses`.
        """
        self._tree = tree
        self._tiers = tiers
        self._workflows = workflows
        self._popularity = popularity
        self._half_life_s = half_life_s

    def lock_match(self, match: Match) -> list[Node]:
        """Locks the nodes of a match, the last of them cut to the part that matched."""
        path = match.path
        if path:
            if match.last_blocks < path[-1].blocks:
                path[-1] = self.split(path[-1], match.last_blocks)
            self._tree.lock(path[-1])
        return path

    def unlock(self, path: list[Node]) -> None:
        """Gives back the lock on a path."""
        if path:
            self.unlock_node(path[-1])

    def unlock_node(self, node: Node) -> None:
        """Gives back the lock on a node and all above it. A root has none."""
        if not node.is_root:
            for part in self._tree.unlock(node):
                self._tiers.offer(part)

    def split(self, node: Node, blocks: int) -> Node:
        """Splits a node after its first `blocks` blocks. Returns the new upper part."""
        upper = self._tree.split(node, blocks)
        self._tiers.offer(upper)
        self._tiers.offer(node)
        return upper

    def cut(self, path: list[Node], blocks: int) -> list[Node]:
        """Cuts a locked path to its first blocks, and unlocks the rest."""
        kept = list[Node]()
        for node in path:
            if blocks < node.blocks:
                kept += [self.split(node, blocks)] if blocks else []
                break
            kept.append(node)
            blocks -= node.blocks
        else:
            return path
        if kept:
            self._tree.lock(kept[-1])
        self.unlock(path)
        return kept

    def expect(self, node: Node, now: float) -> None:
        """Notes that a client has asked for a node: what it wants soon must not be the next to leave.

        A node that nobody has used is ranked as if one workflow had, just now.
        """
        node.last_access = now
        if node.uses == -math.inf:
            node.uses = aged_uses(node.uses, now, self._half_life_s)
        if node.entry is None:
            node.entry = PrefixStat(None, b"", self._popularity.workflow_count)
            node.entry.count(0, 0)

    def use(self, node: Node, handle: CacheHandle, segment: Segment, now: float) -> None:
        """Notes that a sequence uses the node after its committed blocks, which lies in that segment of its record."""
        node.last_access = now
        node.uses = aged_uses(node.uses, now, self._half_life_s)
        node.writer = None
        self._tiers.prefetched.used(node)
        self._tiers.prefetched.staging.used(node)
        self._tiers.prefetched.early.wasted(node)
        if node.sheltered:  # it is this worker's own from now on
            node.sheltered = False
            self._tiers.note(node, 0, node.blocks)
        owner = handle.owner
        if owner not in self._workflows:
            return  # the workflow ended while its step ran
        if owner not in node.owners:
            owner.nodes[node] = None
        node.owners[owner] = segment
        if segment.prefix_stat is not None:
            node.entry = segment.prefix_stat.above(segment.stop - handle.committed - node.blocks)
