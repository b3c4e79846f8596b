"""PBKV as published: retired blocks first, then the lowest lookahead reuse score (arXiv 2605.06472).

    Score(c) = sum over k = 1..K of gamma^(k-1) * sum over active workflows w of s_w^(k) * (A_w(c) . P_w^(k))

`A_w(c)` marks the agents of w that have used c, `P_w^(k)` is the forecast distribution over agents k steps ahead, and `s_w^(k)`
the probability that w has not ended by then. The sum over workflows protects prefixes that many of them share.
"""

import math
from collections.abc import Sequence

from pbkv_cluster.cache.policies.base import POLICIES, ForesightPolicy, current_forecast
from pbkv_cluster.cache.tree.node import Node, Owner
from pbkv_cluster.core.config import CacheConfig
from pbkv_cluster.reuse.record.segment import Segment

_PRIOR = 0.5  # score of a workflow without a forecast: probability that it uses a block again in its next step


@POLICIES.register("pbkv-paper")
class PbkvPaper(ForesightPolicy):
    """The lookahead score, which decays with the age of each forecast.

    The decay is our only addition: a workflow's share of the score halves every `cache.forecast_half_life_s` seconds after its
    forecast arrived, so that without a predictor the order becomes one by recent activity. All shares halve at the same rate,
    which does not change the order of nodes. So values are log2 of the score as of a fixed time: they do not drift, and nothing
    overflows.
    """

    retired_first = True

    def __init__(self, config: CacheConfig) -> None:
        self._gamma = config.gamma
        self._half_life = config.forecast_half_life_s

    def value(self, node: Node, now: float) -> float:
        parts = []
        for owner, segment in node.owners.items():
            score, since = self._score(owner, segment)
            if score > 0.0:
                parts.append(math.log2(score) + since / self._half_life)
        if not parts:
            return -math.inf
        top = max(parts)
        return top + math.log2(sum(2.0 ** (part - top) for part in parts))

    def halved(self, value: float) -> float:
        return value - 1.0

    def certain_value(self, now: float) -> float:
        return now / self._half_life  # a score of 1

    def soon_used(self, nodes: Sequence[Node], now: float) -> Sequence[float]:
        return [math.fsum(_one_step(owner, segment) for owner, segment in node.owners.items()) for node in nodes]

    def _score(self, owner: Owner, segment: Segment) -> tuple[float, float]:
        """One workflow's share of the score, and the time from which it decays."""
        forecast = current_forecast(owner)
        if forecast is None:
            return _PRIOR, owner.active_at
        score, discount = 0.0, 1.0
        for step in forecast.steps:
            reach = sum(step.agents.get(agent, 0.0) for agent in segment.agents)
            score += discount * step.survival * reach
            discount *= self._gamma
        return score, owner.forecast_at


def _one_step(owner: Owner, segment: Segment) -> float:
    """V(c) of one workflow: the probability that its next step's agent has used the block, A_w(c) . P_w."""
    forecast = current_forecast(owner)
    if forecast is None or not forecast.steps:
        return 0.0
    return sum(forecast.steps[0].agents.get(agent, 0.0) for agent in segment.agents)
