"""What a worker's tiers hold and what its cache has decided, as a message."""

from dataclasses import asdict

from pbkv_cluster.cache.observer import GuardStat
from pbkv_cluster.cache.tiers.prefetch_ledger import PrefetchCount
from pbkv_cluster.core.tokens import BLOCK_TOKENS
from pbkv_cluster.gpu_worker.engine.engine import Engine
from pbkv_cluster.gpu_worker.pool_memory import PoolMemory
from pbkv_cluster.rpc.convert import tier_to_wire
from pbkv_cluster.rpc.v1 import store_pb2


def _guard_to_wire(guard: GuardStat) -> store_pb2.GuardStat:
    hits, lru, policy = (store_pb2.CacheHits(**asdict(each)) for each in (guard.hits, guard.lru_hits, guard.policy_hits))
    return store_pb2.GuardStat(
        lru_active=guard.lru_active,
        switches=guard.switches,
        prompt_tokens=guard.prompt_tokens,
        hits=hits,
        lru_hits=lru,
        policy_hits=policy,
        evicted_by_lru=guard.evicted_by_lru,
        evicted_by_policy=guard.evicted_by_policy,
        saved_s=guard.saved_s,
    )


def _prefetch_to_wire(count: PrefetchCount, block_bytes: int) -> store_pb2.PrefetchStat:
    return store_pb2.PrefetchStat(
        loaded_tokens=count.loaded * BLOCK_TOKENS,
        used_tokens=count.used * BLOCK_TOKENS,
        wasted_tokens=count.wasted * BLOCK_TOKENS,
        cancelled_tokens=count.cancelled * BLOCK_TOKENS,
        loaded_bytes=count.loaded * block_bytes,
    )


def store_stat(engine: Engine, memory: PoolMemory) -> store_pb2.StoreStat:
    """Called on the engine's thread."""
    cache = engine.cache
    tiers = [
        store_pb2.TierStat(
            tier=tier_to_wire(tier.kind),
            capacity_blocks=tier.pool.capacity,
            used_blocks=cache.used_blocks(tier.kind),
            locked_blocks=cache.locked_blocks(tier.kind),
            block_bytes=memory.block_bytes,
            ready_blocks=memory.ready_blocks(tier.kind, tier.pool.capacity),
        )
        for tier in cache.tiers
    ]
    guard = cache.guard()
    return store_pb2.StoreStat(
        tiers=tiers,
        policy=engine.policy,
        decisions=engine.decisions,
        guard=None if guard is None else _guard_to_wire(guard),
        leases=store_pb2.LeaseStat(
            leases=len(cache.leases),
            leased_tokens=cache.leases.blocks * BLOCK_TOKENS,
            limit_tokens=cache.leases.limit * BLOCK_TOKENS,
        ),
        prefetch=_prefetch_to_wire(cache.tiers.prefetched.total, memory.block_bytes),
    )
