"""Whether to trust a policy, by what it and LRU would each have hit on the same steps.

Hits are weighted exponentially. The guard falls back to LRU when the policy's hits are below a share of LRU's, the floor, and
follows the policy again when they are a little above it. A switch costs nothing, so the margin need only keep single steps from
switching back and forth: a step of average size moves the ratio by its weight among all, 1 / steps remembered.
"""

_WARM_UP = 0.2  # share of its memory that must be filled before the first decision


class Balance:
    """Weighs the hits of a policy against those of LRU."""

    def __init__(self, floor: float, steps: int) -> None:
        """Args:
        floor: share of LRU's hits that the policy must reach.
        steps: how many are remembered. Each weighs 1 - 1 / steps times as much as the next.
        """
        self._factor = 1 - 1 / steps
        self._floor = floor
        self._recovery = floor + 1 / steps
        self._needed = _WARM_UP * steps
        self._weight = self._lru = self._policy = 0.0
        self.lru_active = False  # the cache should evict by LRU

    def restart(self, lru_active: bool) -> None:
        """Forgets all steps; the next decision needs a warm-up."""
        self._weight = self._lru = self._policy = 0.0
        self.lru_active = lru_active

    def add(self, lru_hits: int, policy_hits: int) -> bool:
        """Counts a step, by the tokens that were hit. True if that changes `lru_active`."""
        self._weight = self._factor * self._weight + 1
        self._lru = self._factor * self._lru + lru_hits
        self._policy = self._factor * self._policy + policy_hits
        if self._weight < self._needed:
            return False
        lru_active = self._policy < (self._recovery if self.lru_active else self._floor) * self._lru
        changed = lru_active is not self.lru_active
        self.lru_active = lru_active
        return changed
