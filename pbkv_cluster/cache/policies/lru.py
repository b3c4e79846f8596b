"""Least recently used, with or without retired blocks first."""

from pbkv_cluster.cache.policies.base import POLICIES, ReusePolicy
from pbkv_cluster.cache.tree.node import Node
from pbkv_cluster.core.config import CacheConfig


@POLICIES.register("lru")
class Lru(ReusePolicy):
    """The least recently used is evicted first. All other policies are compared with it."""

    steady = True
    needs_record = False
    uses_forecasts = False

    def __init__(self, config: CacheConfig) -> None:
        del config

    def value(self, node: Node, now: float) -> float:
        return node.last_access


@POLICIES.register("retired-lru")
class RetiredLru(Lru):
    """Retired blocks are evicted first, then the least recently used.

    Source: level 0 of PBKV's hierarchical eviction (arXiv 2605.06472) without its level 1.
    """

    retired_first = True
