"""Never worse than LRU: whether to trust a policy, by what it and LRU would each have hit on the same steps.

Hits are weighted exponentially. The guard leans to LRU when the policy's fall below a share of LRU's, its floor, and follows
the policy again when they are a little above it. A change of mind costs nothing, so that little need only keep one step from
changing it back and forth: a step of average size moves the ratio by its weight among all, 1 / steps remembered.
"""

from dataclasses import dataclass

_WARM_UP = 0.2  # share of its memory that the guard fills before it says anything


@dataclass(frozen=True, slots=True)
class GuardStat:
    """What a guard has seen and done since the start. Tokens are of prompts, hits on the GPU tier; evicted are its blocks."""

    leaning: bool  # evicts by LRU now
    switches: int  # to LRU and back
    prompt_tokens: int
    hit_tokens: int  # by the cache
    lru_hit_tokens: int  # that LRU alone would have hit
    policy_shadow_hit_tokens: int  # that the policy alone would have hit
    evicted_by_lru: int
    evicted_by_policy: int

    @property
    def lru_share(self) -> float:
        """Share of the evicted blocks that LRU chose."""
        evicted = self.evicted_by_lru + self.evicted_by_policy
        return self.evicted_by_lru / evicted if evicted else 0.0


class Balance:
    """Which of two has hit more lately. Tokens in, one decision out."""

    def __init__(self, floor: float, steps: int) -> None:
        """Args:
        floor: share of LRU's hits that the policy must reach.
        steps: how many are remembered. Each weighs 1 - 1 / steps times what the one after it does.
        """
        self._factor = 1 - 1 / steps
        self._floor = floor
        self._recovery = floor + 1 / steps
        self._needed = _WARM_UP * steps
        self._weight = self._lru = self._policy = 0.0
        self.leaning = False

    def add(self, lru_hits: int, policy_hits: int) -> bool:
        """Counts a step. True if that changes `leaning`."""
        self._weight = self._factor * self._weight + 1
        self._lru = self._factor * self._lru + lru_hits
        self._policy = self._factor * self._policy + policy_hits
        if self._weight < self._needed:
            return False
        leaning = self._policy < (self._recovery if self.leaning else self._floor) * self._lru
        changed = leaning is not self.leaning
        self.leaning = leaning
        return changed
