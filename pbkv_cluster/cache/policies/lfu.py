"""Least frequently used, with aging counts."""

from pbkv_cluster.cache.policies.base import POLICIES, ReusePolicy
from pbkv_cluster.cache.tree.node import Node
from pbkv_cluster.core.config import CacheConfig


@POLICIES.register("lfu")
class Lfu(ReusePolicy):
    """The least often used is evicted first; ties go to the least recently used.

    Source: LRFU (Lee et al., IEEE Transactions on Computers 50(12), 2001). A use counts 2^(-age / half-life), so that blocks
    that were popular once are evicted in the end: a short half-life is close to LRU, a long one to LFU without aging. All
    counts age at the same rate, which does not change their order, so `Node.uses` stores them independently of the current time
    (see `aged_uses`). The half-life is `cache.lfu_half_life_s`.
    """

    steady = True
    needs_record = False
    uses_forecasts = False

    def __init__(self, config: CacheConfig) -> None:
        del config

    def value(self, node: Node, now: float) -> float:
        return node.uses
