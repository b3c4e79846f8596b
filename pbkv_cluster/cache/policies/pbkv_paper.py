"""PBKV as published: retired blocks first, then the lowest lookahead reuse score (arXiv 2605.06472).

    Score(c) = sum over k = 1..K of gamma^(k-1) * sum over active workflows w of s_w^(k) * (A_w(c) . P_w^(k))

`A_w(c)` marks the agents of w that have used c, `P_w^(k)` is the forecast distribution over agents k steps ahead, and `s_w^(k)`
the probability that w gets that far. The sum over workflows protects prefixes that many share.
"""

import math

from pbkv_cluster.cache.policies.base import POLICIES, ReusePolicy, current_forecast
from pbkv_cluster.cache.tree.node import Node, Owner
from pbkv_cluster.core.config import CacheConfig
from pbkv_cluster.reuse.record.segment import Segment

_PRIOR = 0.5  # one-step probability that a workflow nobody has forecast uses a block again


@POLICIES.register("pbkv-paper")
class PbkvPaper(ReusePolicy):
    """The lookahead score, decaying with the age of each forecast.

    Decay is the one addition: a workflow's share of the score halves every `cache.forecast_half_life_s` seconds after its
    forecast came, so that a lost predictor leaves an order by recent activity. Halving all shares at one rate keeps the order
    of nodes fixed in time, so values are kept as log2 of the score with the clock's reading taken out: nothing drifts, and
    nothing overflows.
    """

    retired_first = True

    def __init__(self, config: CacheConfig) -> None:
        self._gamma = config.gamma
        self._half_life = config.forecast_half_life_s

    def value(self, node: Node, now: float) -> float:
        parts = []
        for owner, access in node.owners.items():
            score, since = self._score(owner, access)
            if score > 0.0:
                parts.append(math.log2(score) + since / self._half_life)
        if not parts:
            return -math.inf
        top = max(parts)
        return top + math.log2(sum(2.0 ** (part - top) for part in parts))

    def _score(self, owner: Owner, access: Segment) -> tuple[float, float]:
        """One workflow's share of the score, and when what it rests on was new."""
        forecast = current_forecast(owner)
        if forecast is None:
            return _PRIOR, owner.active_at  # from the time of its present step
        score, discount = 0.0, 1.0
        for step in forecast.steps:
            reach = sum(step.agents.get(agent, 0.0) for agent in access.agents)
            score += discount * step.survival * reach
            discount *= self._gamma
        return score, owner.forecast_at
