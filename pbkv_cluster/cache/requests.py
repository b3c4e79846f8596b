"""What clients ask of a cache besides steps: to load blocks ahead of their use, and to lease them."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from pbkv_cluster.cache.observer import CacheObserver
from pbkv_cluster.cache.owners import ActiveWorkflows
from pbkv_cluster.cache.prefetch.stager import Stager
from pbkv_cluster.cache.sequence.fetch import Fetcher
from pbkv_cluster.cache.sequence.paths import Paths
from pbkv_cluster.cache.tiers.leases import BlockLeases
from pbkv_cluster.cache.tiers.prefetch_ledger import LOAD_REASONS, PrefetchSource
from pbkv_cluster.cache.tiers.tiers import Tiers
from pbkv_cluster.cache.tree.node import GPU, Node
from pbkv_cluster.cache.tree.prefix_tree import PrefixTree, lineage
from pbkv_cluster.core.blocks import Namespace
from pbkv_cluster.core.clock import Clock
from pbkv_cluster.core.tokens import BLOCK_TOKENS, full_blocks
from pbkv_cluster.core.tokens import count as count_tokens
from pbkv_cluster.core.usage import Tier


@dataclass(frozen=True, slots=True)
class Prefetched:
    """Tokens of a prompt, or of what a workflow has used."""

    loaded: int = 0  # that are on their way to the GPU now
    resident: int = 0  # that the GPU has, or will have when they have arrived
    tokens: int = 0  # in all
    staged: int = 0  # that are on their way to host memory, since the GPU has no room for them
    tiers: Mapping[Tier, int] = field(default_factory=dict)  # by the fastest tier that has them; on their way: by the source


@dataclass(frozen=True, slots=True)
class Leased:
    """Tokens of a prompt."""

    cached: int
    leased: int  # the first of them


class ClientRequests:
    """The requests to one cache. Blocks are loaded and staged into free space and that of retired blocks only."""

    def __init__(
        self,
        tree: PrefixTree,
        tiers: Tiers,
        workflows: ActiveWorkflows,
        paths: Paths,
        fetcher: Fetcher,
        stager: Stager,
        leases: BlockLeases,
        observer: Callable[[], CacheObserver],
        clock: Clock,
    ) -> None:
        """Args:
        tree: that prefixes are found in.
        tiers: where their blocks lie.
        workflows: that have used blocks.
        paths: of the tree.
        fetcher: gets blocks from other workers.
        stager: brings to host memory what the GPU has no room for.
        leases: of the cache.
        observer: the cache's present one.
        clock: the cache's.
        """
        self._tree = tree
        self._tiers = tiers
        self._workflows = workflows
        self._paths = paths
        self._fetcher = fetcher
        self._stager = stager
        self._leases = leases
        self._observer = observer
        self._clock = clock

    def prefetch(self, namespace: Namespace, tokens: bytes) -> Prefetched:
        """Brings the cached prefix of a prompt to the GPU, and what other workers have after it."""
        root = self._tree.root(namespace)
        path = self._paths.lock_match(self._tree.match(root, tokens))
        matched = sum(node.blocks for node in path)
        loaded = self._load(path)
        by_tier = dict(self._tiers.by_tier(path, matched))
        if all(node.held[GPU] == node.blocks for node in path):
            fetched = self._fetcher.prefetch(path[-1] if path else root, tokens, matched, self._clock.now())
            loaded += sum(fetched.values())
            for tier, blocks in fetched.items():
                by_tier[tier] = by_tier.get(tier, 0) + blocks
            resident = matched + sum(fetched.values())
        else:
            resident = sum(node.held[GPU] for node in path)
        self._paths.unlock(path)
        staged = self._stager.request(root, tokens, self._clock.now())
        by_tier[Tier.REMOTE] = by_tier.get(Tier.REMOTE, 0) + staged.get(Tier.REMOTE, 0)
        done = _prefetched(loaded, resident, full_blocks(count_tokens(tokens)), by_tier)
        return replace(done, staged=sum(staged.values()) * BLOCK_TOKENS)

    def prefetch_workflow(self, workflow: str, agent: str) -> Prefetched:
        """Brings what an active workflow has used to the GPU, what is worth most by the GPU's policy first.

        Args:
            workflow: its id; one that is not known here has nothing here.
            agent: only what this agent of it has used; empty: all.
        """
        owner = self._workflows.find(workflow)
        nodes = [
            node
            for node in (() if owner is None else owner.nodes)
            if not agent or (owner is not None and agent in node.owners[owner].agents)
        ]
        missing = [node for node in nodes if node.held[GPU] < node.blocks]
        values = self._tiers.gpu.policy.values(missing, self._clock.now()) if missing else ()
        loaded = 0
        for _, _, node in sorted(zip(values, range(len(missing)), missing, strict=True), reverse=True):
            self._tree.lock(node)
            loaded += self._load(list(lineage(node))[::-1])
            self._paths.unlock_node(node)
        nodes = [node for node in nodes if node.parent is not None]  # room for one can have cost another its place in the cache
        by_tier: dict[Tier, int] = {}
        for node in nodes:
            for tier, blocks in self._tiers.by_tier([node], node.blocks).items():
                by_tier[tier] = by_tier.get(tier, 0) + blocks
        return _prefetched(loaded, sum(node.held[GPU] for node in nodes), sum(node.blocks for node in nodes), by_tier)

    def lease(self, namespace: Namespace, tokens: bytes, lease_id: str, seconds: float, workflow: str = "") -> Leased:
        """Leases the cached prefix of a prompt, see `BlockLeases.lease`."""
        cached, leased = self._leases.lease(namespace, tokens, lease_id, seconds, workflow)
        self._observer().blocks_leased(namespace, tokens, lease_id, seconds, workflow)
        return Leased(cached * BLOCK_TOKENS, leased * BLOCK_TOKENS)

    def release(self, tenant: str, lease_id: str) -> int:
        """Ends a lease. Returns the tokens that it was for and that are cached."""
        released = self._leases.release(tenant, lease_id)
        self._observer().blocks_released(tenant, lease_id)
        return released * BLOCK_TOKENS

    def _load(self, path: Sequence[Node]) -> int:
        """Loads what the GPU lacks of a locked path, from its start, as much as is worth it and there is room for. Returns the
        blocks.
        """
        slots = self._tiers.take(self._worth_loading(path), retired_only=True)
        assert slots is not None, "only a take that may evict active blocks refuses"
        if slots:
            now = self._clock.now()
            for node in path:
                self._paths.expect(node, now)
            self._tiers.load(path, slots, PrefetchSource.REQUEST)
            self._tiers.decisions[LOAD_REASONS[PrefetchSource.REQUEST]] += len(slots)
        return len(slots)

    def _worth_loading(self, path: Sequence[Node]) -> int:
        """How many of the blocks that the GPU lacks come before the first that is loaded slower than computed."""
        by_tier, missing = Counter[Tier](), sum(node.blocks - node.held[GPU] for node in path)
        for node in path:
            for tier, start, stop in node.runs(node.held[GPU], node.blocks):
                kind = self._tiers.pools[tier].kind
                wanted = by_tier[kind] + stop - start
                by_tier[kind] = max(by_tier[kind], self._tiers.costs.worth_loading(kind, wanted))
                if by_tier[kind] < wanted:
                    self._tiers.decisions["prefetch_skipped_slower"] += missing - by_tier.total()
                    return by_tier.total()
        return by_tier.total()


def _prefetched(loaded: int, resident: int, blocks: int, by_tier: Mapping[Tier, int]) -> Prefetched:
    tiers = {tier: count * BLOCK_TOKENS for tier, count in by_tier.items() if count}
    return Prefetched(loaded * BLOCK_TOKENS, resident * BLOCK_TOKENS, blocks * BLOCK_TOKENS, tiers=tiers)
