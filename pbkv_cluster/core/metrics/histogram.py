"""A distribution of seconds that is cheap enough to be kept for every step."""

from bisect import bisect_left
from collections.abc import Sequence

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 25.0, 50.0, 100.0)
"""Upper bounds for a step: from a cached prompt's first token to a long answer."""

LONG_SECONDS = (0.1, 0.5, 1.0, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1800.0, 3600.0, 14400.0)
"""Upper bounds for a workflow, whose tools and people may take their time."""


class SecondsHistogram:
    """Counts by upper bound, and the exact sum."""

    def __init__(self, bounds: Sequence[float] = SECONDS) -> None:
        """`bounds`: upper bounds of the buckets, rising; one more bucket takes what is above."""
        self.bounds = tuple(bounds)
        self._counts = [0] * (len(self.bounds) + 1)
        self.sum = 0.0

    def add(self, seconds: float) -> None:
        """Takes in one duration."""
        self._counts[bisect_left(self.bounds, seconds)] += 1
        self.sum += seconds

    @property
    def count(self) -> int:
        """Durations taken in."""
        return sum(self._counts)

    def cumulative(self) -> list[tuple[str, int]]:
        """For each upper bound, as Prometheus writes it, the durations up to it; the last bound is +Inf."""
        found, total = [], 0
        for bound, count in zip((*map(repr, self.bounds), "+Inf"), self._counts, strict=True):
            total += count
            found.append((bound, total))
        return found
