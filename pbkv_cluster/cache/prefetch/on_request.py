"""Loads blocks to the GPU because a client asks for it, into free space and that of retired blocks only."""

from collections.abc import Sequence

from pbkv_cluster.cache.owners import ActiveWorkflows
from pbkv_cluster.cache.sequence.handle import Prefetched
from pbkv_cluster.cache.sequence.paths import Paths
from pbkv_cluster.cache.tiers.prefetch_ledger import LOAD_REASONS, PrefetchSource
from pbkv_cluster.cache.tiers.tiers import Tiers
from pbkv_cluster.cache.tree.node import GPU, Node
from pbkv_cluster.cache.tree.prefix_tree import PrefixTree, lineage
from pbkv_cluster.core.blocks import Namespace
from pbkv_cluster.core.tokens import BLOCK_TOKENS


class RequestedPrefetch:
    """Prefetches of one cache that clients ask for."""

    def __init__(self, tree: PrefixTree, tiers: Tiers, workflows: ActiveWorkflows, paths: Paths) -> None:
        self._tree = tree
        self._tiers = tiers
        self._workflows = workflows
        self._paths = paths

    def prompt(self, namespace: Namespace, tokens: bytes) -> Prefetched:
        """Brings the cached prefix of a prompt to the GPU."""
        path = self._paths.lock_match(self._tree.match(self._tree.root(namespace), tokens))
        if not path:
            return Prefetched(0, 0)
        loaded = self._load(path)
        self._paths.unlock(path)
        return Prefetched(loaded * BLOCK_TOKENS, sum(node.held[GPU] for node in path) * BLOCK_TOKENS)

    def workflow(self, workflow: str, now: float) -> Prefetched:
        """Brings what an active workflow has used to the GPU, what is worth most by the GPU's policy first.

        Args:
            workflow: its id; one that is not known here has nothing here.
            now: seconds.
        """
        owner = self._workflows.find(workflow)
        nodes = [] if owner is None else list(owner.nodes)
        missing = [node for node in nodes if node.held[GPU] < node.blocks]
        values = self._tiers.gpu.policy.values(missing, now) if missing else ()
        loaded = 0
        for _, _, node in sorted(zip(values, range(len(missing)), missing, strict=True), reverse=True):
            self._tree.lock(node)
            loaded += self._load(list(lineage(node))[::-1])
            self._paths.unlock_node(node)
        return Prefetched(loaded * BLOCK_TOKENS, sum(node.held[GPU] for node in nodes) * BLOCK_TOKENS)

    def _load(self, path: Sequence[Node]) -> int:
        """Loads what the GPU lacks of a locked path, from its start, as much as there is room for. Returns the blocks."""
        slots = self._tiers.take(sum(node.blocks - node.held[GPU] for node in path), retired_only=True)
        assert slots is not None, "only a take that may evict active blocks refuses"
        if slots:
            self._tiers.load(path, slots, PrefetchSource.REQUEST)
            self._tiers.decisions[LOAD_REASONS[PrefetchSource.REQUEST]] += len(slots)
        return len(slots)
