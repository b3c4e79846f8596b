"""Makes a worker's cache, with a guard where the configuration asks for one."""

from collections.abc import Callable, Mapping

from pbkv_cluster.cache.cache import KVCache
from pbkv_cluster.cache.decisions.log import DecisionLog
from pbkv_cluster.cache.guard.guard import BASELINE, Guard
from pbkv_cluster.cache.tiers.announcements import ChangeListener
from pbkv_cluster.cache.tiers.elsewhere import NOWHERE, Elsewhere
from pbkv_cluster.cache.tiers.transfer import TransferEngine
from pbkv_cluster.core.clock import Clock
from pbkv_cluster.core.config import CacheConfig
from pbkv_cluster.core.usage import Tier


def make_cache(
    capacity: Mapping[Tier, int],
    config: CacheConfig,
    engine: TransferEngine,
    clock: Clock,
    on_change: ChangeListener | None = None,
    compute_seconds: Callable[[int], float] = lambda tokens: float("inf"),
    elsewhere: Elsewhere = NOWHERE,
    log: DecisionLog | None = None,
) -> KVCache:
    """A cache, guarded if `config.guard` is set and not all tiers follow `lru`. For the arguments see `KVCache`."""
    cache = KVCache(capacity, config, engine, clock, on_change, compute_seconds, elsewhere=elsewhere, log=log)
    if config.guard and (config.policy, config.host_policy or BASELINE) != (BASELINE, BASELINE):
        cache.observer = Guard(cache, config, engine, clock, compute_seconds)
    return cache
