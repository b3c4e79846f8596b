"""What one policy alone would have hit on the steps of a cache: the same bookkeeping without any KV."""

from pbkv_cluster.cache.cache import KVCache
from pbkv_cluster.cache.handle import CacheHandle
from pbkv_cluster.cache.policies.base import ReusePolicy
from pbkv_cluster.cache.tiers.transfer import NullTransferEngine
from pbkv_cluster.core.blocks import Namespace
from pbkv_cluster.core.clock import Clock
from pbkv_cluster.core.config import CacheConfig
from pbkv_cluster.core.step_graph import StepGraph
from pbkv_cluster.core.tokens import BLOCK_TOKENS
from pbkv_cluster.core.usage import Tier
from pbkv_cluster.reuse.record.prefix_popularity import PrefixPopularity


class Shadow:
    """A cache of the same capacity in blocks, without a host tier, that is shown what the cache does.

    Steps are known by the leases that the cache has given them. What a step computes is entered as its prompt is, and its
    output when it ends, at once. One that a shadow has no room for goes on without it: what it holds of it counts as found.

    Memory: a tree and a pool of their own; some 90 bytes a block of capacity, 64 of them tokens. Block keys are never hashed,
    and workflows have one record, the cache's.
    """

    def __init__(self, blocks: int, config: CacheConfig, policy: ReusePolicy, clock: Clock, catalog: PrefixPopularity) -> None:
        """Args:
        blocks: capacity.
        config: parameters of the policy.
        policy: the one that is followed.
        clock: the cache's.
        catalog: the cache's. Its records of workflows serve here as well.
        """
        alone = config.model_copy(update={"host_policy": "lru"})
        self.cache = KVCache({Tier.GPU: blocks}, alone, NullTransferEngine(), clock, policy=policy)
        self.cache.popularity = catalog
        self._leases: dict[CacheHandle, CacheHandle] = {}

    def open(
        self,
        lease: CacheHandle,
        namespace: Namespace,
        tokens: bytes,
        workflow: str,
        agent: str,
        step: int,
        prompt_tokens: int,
        graph: StepGraph | None,
    ) -> int:
        """A step was admitted; see `KVCache.open`. Returns how many tokens of its prompt are found here."""
        own = self.cache.open(namespace, tokens, workflow, agent, step, prompt_tokens, graph=graph, beside=lease)
        if own is None:
            found = self.cache.captured(namespace, tokens)
        else:
            self._leases[lease] = own
            found = own.delivered
        return min(sum(found.values()), prompt_tokens)

    def enter(self, lease: CacheHandle, tokens: bytes | bytearray, computed: int | None) -> None:
        """Of a step's tokens, so many (None: all) have been computed, and it has the blocks of its table."""
        own = self._leases.get(lease)
        if own is None:
            return
        if self.cache.grow(own, len(lease.table) * BLOCK_TOKENS):
            self.cache.commit(own, tokens, computed)
        else:
            self.close(lease)

    def close(self, lease: CacheHandle) -> None:
        """A step has ended, or was preempted."""
        own = self._leases.pop(lease, None)
        if own is not None:
            self.cache.close(own)
