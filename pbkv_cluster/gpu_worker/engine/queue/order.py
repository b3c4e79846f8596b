"""In which order the steps of one tenant are admitted: by arrival, moved ahead by seconds for what speaks for a step.

A step starts to count from its arrival, less `engine.ageing_s` for each level of priority and, in the order `cached`, less
`engine.cached_ahead_s` times the share of its prompt that the cache held when it arrived. So a workflow that comes back from a
tool goes first while its context is still there, before new workflows whose prompts would push it out.

What waits gains on what comes later by a second each second, so nothing starves: a step is only overtaken by steps of its
tenant that arrive less than `longest_lead_s` after it.
"""

from pbkv_cluster.core.config import EngineConfig
from pbkv_cluster.gpu_worker.engine.queue.step_queue import Rank

MAX_PRIORITY = 10  # levels; what is above or below counts as the highest or lowest


class Order:
    """Ranks steps."""

    def __init__(self, config: EngineConfig) -> None:
        self._ageing_s = config.ageing_s
        self._cached_ahead_s = config.cached_ahead_s if config.order == "cached" else 0.0

    @property
    def longest_lead_s(self) -> float:
        """Seconds that a step may have waited and still be overtaken by one that arrives."""
        return 2 * MAX_PRIORITY * self._ageing_s + self._cached_ahead_s

    def rank(self, arrived_at: float, arrival: int, priority: int, cached_share: float) -> Rank:
        """The rank of a step.

        Args:
            arrived_at: seconds.
            arrival: its number.
            priority: higher goes first.
            cached_share: of its prompt, from 0 to 1.
        """
        level = max(-MAX_PRIORITY, min(MAX_PRIORITY, priority))
        return Rank(arrived_at - self._ageing_s * level - self._cached_ahead_s * cached_share, arrival)
