"""Whether to trust a policy, by what it and LRU would each have cost on the same steps.

The differences of the costs, step by step, are weighted exponentially, and their sum is set against its spread:

    T = sum of w x / sqrt(sum of (w x)^2)

If neither of the two is better, so that a difference is as likely as its opposite whatever came before, then T exceeds z with a
probability of at most exp(-z^2 / 2), however the differences are distributed (de la Peña: A general class of exponential
inequalities for martingales and ratios, Annals of Probability 27(1), 1999). No number of steps has to pass first: the first k
differences together give at most sqrt(k). And the way back is the same test with the sign reversed, so that two policies that
cost about the same are not switched back and forth.
"""

import math


class Balance:
    """Weighs the costs of a policy against those of LRU."""

    def __init__(self, confidence: float, steps: int) -> None:
        """Args:
        confidence: T that it takes to change from one to the other.
        steps: how many are remembered. Each weighs 1 - 1 / steps times as much as the next.
        """
        self._confidence = confidence
        self._factor = 1 - 1 / steps
        self._sum = self._squares = 0.0
        self.lru_active = False  # the cache should evict by LRU

    def restart(self, lru_active: bool) -> None:
        """Forgets all steps."""
        self._sum = self._squares = 0.0
        self.lru_active = lru_active

    @property
    def excess(self) -> float:
        """T: by how many standard deviations the policy costs more than LRU; below 0: less."""
        return self._sum / math.sqrt(self._squares) if self._squares else 0.0

    def add(self, difference: float) -> bool:
        """Counts a step, by how much more the policy cost than LRU, in any unit. True if that changes `lru_active`."""
        self._sum = self._factor * self._sum + difference
        self._squares = self._factor**2 * self._squares + difference * difference
        excess = self.excess
        changed = excess < -self._confidence if self.lru_active else excess > self._confidence
        self.lru_active ^= changed
        return changed
