"""What is worth loading to the GPU now, and what may leave it for that. It knows no device, and changes nothing."""

import heapq
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from pbkv_cluster.cache.eviction import Rank
from pbkv_cluster.cache.owners import ActiveWorkflows
from pbkv_cluster.cache.policies.base import ForesightPolicy
from pbkv_cluster.cache.prefetch.missing import MissingNodes
from pbkv_cluster.cache.tiers.prefetch_ledger import PrefetchSource
from pbkv_cluster.cache.tiers.tiers import Tiers
from pbkv_cluster.cache.tree.node import GPU, Node
from pbkv_cluster.cache.tree.prefix_tree import Match, PrefixTree
from pbkv_cluster.core.blocks import Namespace
from pbkv_cluster.core.tokens import BLOCK_TOKENS, count

QUEUED_MAX = 8  # steps at the head of the queue that are looked at
LIKELY = 0.15  # expected uses soon, at least


class QueuedPrompt(NamedTuple):
    """What a step that waits for admission will read."""

    namespace: Namespace
    tokens: bytes


class NodeLoad(NamedTuple):
    """A node that the GPU should hold whole; it holds the node's parent."""

    node: Node
    value: float | None  # by the GPU's policy; None: its values are an order and nothing else, or are not trusted now


class PrefetchPlanner:
    """Plans of one cache.

    Of two blocks of which the GPU can hold one, it gets the one that is worth more. A block in use is never evicted, one of an
    ended workflow only for one that is worth at least as much, and any other only for one that is worth more than twice as
    much. While the guard has all tiers evict by LRU, values are not trusted: then only queued steps are prepared, in the order
    in which they will be admitted, and what leaves the GPU for them is what would leave it at their admission.
    """

    def __init__(self, tree: PrefixTree, tiers: Tiers, workflows: ActiveWorkflows) -> None:
        self._tree = tree
        self._tiers = tiers
        self._missing = MissingNodes(workflows, lambda node: node.held[GPU] < node.blocks)

    def queued(self, prompts: Sequence[QueuedPrompt]) -> Iterator[Match]:
        """The cached prefixes of queued steps, in the order of admission, as far as they fit on the GPU together."""
        room = self._tiers.room()
        for prompt in prompts[:QUEUED_MAX]:
            usable = (count(prompt.tokens) - 1) // BLOCK_TOKENS
            match = self._tree.match(self._tree.root(prompt.namespace), prompt.tokens, usable)
            yield match
            room -= sum(node.blocks for node in match.path)
            if room <= 0:
                return

    def likely(self, now: float) -> Iterator[NodeLoad]:
        """Nodes that active workflows are likely to use soon, the likeliest first, parents before their children.

        None where the policy's values are not trusted. What would be the next to leave the GPU is left out, and what is worth
        less. After each node the caller has loaded as much of it as it wanted to.
        """
        policy = self._foresight()
        if policy is None:
            return
        nodes = self._missing.take()
        if not nodes:
            return
        values = dict(zip(nodes, policy.values(nodes, now), strict=True))
        first = self._tiers.gpu.queue.first()
        soon = policy.soon_used(nodes, now)
        rank = {node: (-each, number) for number, (node, each) in enumerate(zip(nodes, soon, strict=True)) if each >= LIKELY}
        heap = [(*rank[node], node) for node in rank if _parent_is_there(node)]
        heapq.heapify(heap)
        while heap:
            _, _, node = heapq.heappop(heap)
            if not _parent_is_there(node):
                continue  # room for an earlier one has cost it, or what it follows, its place
            if first is not None and not first[0].retired and values[node] <= first[1].value:
                continue
            yield NodeLoad(node, values[node])
            if node.held[GPU] == node.blocks:
                for child in node.children.values():
                    if child in rank:
                        heapq.heappush(heap, (*rank[child], child))

    def queued_value(self, now: float) -> float | None:
        """The value of what a queued step will use."""
        policy = self._foresight()
        return None if policy is None else policy.certain_value(now)

    def may_evict(self, value: float | None, source: PrefetchSource, swaps: bool, node: Node, rank: Rank) -> bool:
        """Whether a node may leave the GPU for one of some value.

        Args:
            value: of the node to be loaded, see `NodeLoad`.
            source: why it is to be loaded.
            swaps: nodes of active workflows may leave, too.
            node: the next to leave, in the order of the tier.
            rank: its rank in this order.
        """
        if node.leases:
            return False
        if value is None:
            return source is PrefetchSource.QUEUE and (swaps or node.retired)
        if node.retired and rank.value <= value:
            return True
        policy = self._foresight()
        return swaps and policy is not None and rank.value < policy.halved(value)

    def _foresight(self) -> ForesightPolicy | None:
        """The GPU's policy, if its values can be trusted and mean something."""
        policy = self._tiers.gpu.policy
        return policy if isinstance(policy, ForesightPolicy) and not self._tiers.lru_active else None


def _parent_is_there(node: Node) -> bool:
    """Whether the GPU holds all that a node follows; not if the node has left the cache."""
    parent = node.parent
    return parent is not None and (parent.is_root or parent.held[GPU] == parent.blocks)
