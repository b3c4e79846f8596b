"""Whether to trust a policy, by what it and LRU would each have cost on the same steps.

The differences of the costs, step by step, are weighted exponentially, and their sum is set against its spread:

    T = sum of w x / sqrt(sum of (w x)^2)

If neither of the two is better, so that a difference is as likely as its opposite whatever came before, then T exceeds z with a
probability of at most exp(-z^2 / 2), however the differences are distributed (de la Peña: A general class of exponential
inequalities for martingales and ratios, Annals of Probability 27(1), 1999). No number of steps has to pass first: the first k
differences together give at most sqrt(k). And the way back is the same test with the sign reversed, so that two policies that
cost about the same are not switched back and forth.

A few long prompts can make up nearly all of the spread, and hide that step after step costs more. The bound holds for any odd
function of the differences as well, so their square roots, with the same signs, are put to the same test: that one is sooner
sure of many losses, the other of large ones. It alone could turn away from a policy that often loses little and now and then
gains much, or for the sake of a few tokens, so it counts only while the sum of the differences has the same sign, and is at
least a hundredth of what LRU has cost.

A policy that loses a tenth of what LRU has cost is left at four fifths of the confidence: to wait for certainty would cost more
than to be wrong now and then, since the way back stays open.
"""

import math

_MATERIAL, _LARGE = 0.01, 0.1  # of LRU's costs
_LESS = 0.8  # of the confidence, where a loss is large


class _Statistic:
    """T of one series."""

    def __init__(self, factor: float) -> None:
        self._factor = factor
        self._squares = 0.0
        self.sum = 0.0

    def add(self, value: float) -> None:
        self.sum = self._factor * self.sum + value
        self._squares = self._factor**2 * self._squares + value * value

    @property
    def t(self) -> float:
        return self.sum / math.sqrt(self._squares) if self._squares else 0.0


class Balance:
    """Weighs the costs of a policy against those of LRU."""

    def __init__(self, confidence: float, steps: int) -> None:
        """Args:
        confidence: T that it takes to change from one to the other; less where the policy loses much.
        steps: how many are remembered. Each weighs 1 - 1 / steps times as much as the next.
        """
        self._confidence = confidence
        self._factor = 1 - 1 / steps
        self.restart(lru_active=False)

    def restart(self, lru_active: bool) -> None:
        """Forgets all steps."""
        self._differences, self._roots = _Statistic(self._factor), _Statistic(self._factor)
        self._lru_cost = 0.0
        self.lru_active = lru_active  # the cache should evict by LRU

    @property
    def excess(self) -> float:
        """T: by how many standard deviations the policy costs more than LRU; below 0: less."""
        by_sum, by_roots = self._differences.t, self._roots.t
        material = abs(self._differences.sum) >= _MATERIAL * self._lru_cost
        return max(by_sum, by_roots, key=abs) if material and by_sum * by_roots > 0 else by_sum

    def add(self, policy_cost: float, lru_cost: float) -> bool:
        """Counts a step, by what it cost under the policy and under LRU, in one unit. True if that changes `lru_active`."""
        difference = policy_cost - lru_cost
        self._lru_cost = self._factor * self._lru_cost + lru_cost
        self._differences.add(difference)
        self._roots.add(math.copysign(math.sqrt(abs(difference)), difference))
        excess, confidence = self.excess, self._confidence
        if not self.lru_active and self._differences.sum >= _LARGE * self._lru_cost:
            confidence *= _LESS
        changed = excess < -confidence if self.lru_active else excess > confidence
        self.lru_active ^= changed
        return changed
