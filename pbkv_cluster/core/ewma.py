"""Exponentially weighted moving averages."""


class Ewma:
    """Average of samples in which each newer one counts for a fixed share: `(1 - weight) * average + weight * sample`.

    The value has the samples' unit. The first sample replaces the initial value, and a sample's influence halves about every
    `0.7 / weight` further samples.
    """

    def __init__(self, weight: float, initial: float) -> None:
        """Args:
        weight: share of the newest sample, above 0 and at most 1.
        initial: the value before the first sample, in the samples' unit.

        Raises:
            ValueError: `weight` is out of its range.
        """
        if not 0.0 < weight <= 1.0:
            raise ValueError(f"weight must be above 0 and at most 1, got {weight}")
        self._weight = weight
        self._empty = True
        self.value = initial

    def add(self, sample: float) -> None:
        """Takes in one more sample."""
        self.value = sample if self._empty else (1 - self._weight) * self.value + self._weight * sample
        self._empty = False
