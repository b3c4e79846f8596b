"""Makes a worker's cache, with a guard where the configuration asks for one."""

from collections.abc import Callable

from pbkv_cluster.cache.cache import KVCache
from pbkv_cluster.cache.guard.guard import BASELINE, Guard
from pbkv_cluster.cache.tiers.mover import Mover
from pbkv_cluster.cache.tiers.tiers import ChangeListener
from pbkv_cluster.core.clock import Clock
from pbkv_cluster.core.config import CacheConfig


def make_cache(
    gpu_blocks: int,
    host_blocks: int,
    config: CacheConfig,
    mover: Mover,
    clock: Clock,
    on_change: ChangeListener | None = None,
    compute_seconds: Callable[[int], float] = lambda tokens: float("inf"),
) -> KVCache:
    """A cache, guarded if `config.guard` is set; policy `lru` needs no guard. For the arguments see `KVCache`."""
    cache = KVCache(gpu_blocks, host_blocks, config, mover, clock, on_change, compute_seconds)
    if config.guard and config.policy != BASELINE:
        cache.observer = Guard(cache, config, clock)
    return cache
