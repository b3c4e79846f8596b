"""Least frequently used, with counts that age."""

from pbkv_cluster.cache.policies.base import POLICIES, ReusePolicy
from pbkv_cluster.cache.tree.node import Node
from pbkv_cluster.core.config import CacheConfig


@POLICIES.register("lfu")
class Lfu(ReusePolicy):
    """The least often used goes first; ties go to the least recently used.

    Source: LRFU (Lee et al., IEEE Transactions on Computers 50(12), 2001). A use counts 2^(-age / half-life), so that what was
    popular once makes way: a short half-life comes near LRU, a long one near LFU without aging. All counts age at one rate,
    which leaves their order alone, so `Node.uses` keeps them as a logarithm with the clock's reading taken out. The half-life
    is `cache.lfu_half_life_s`.
    """

    steady = True
    needs_history = False
    heeds_forecasts = False

    def __init__(self, config: CacheConfig) -> None:
        del config

    def value(self, node: Node, now: float) -> float:
        return node.uses
