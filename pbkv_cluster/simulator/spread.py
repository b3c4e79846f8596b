"""Mean and percentiles of durations."""

import math
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Spread:
    """Seconds, over `count` observations. Percentiles are nearest-rank: each is one of the observations."""

    count: int
    mean: float
    p50: float
    p90: float
    p95: float

    @classmethod
    def of(cls, seconds: Sequence[float]) -> "Spread | None":
        """The spread of some durations; None if there are none."""
        if not seconds:
            return None
        ranked = sorted(seconds)
        mean = math.fsum(ranked) / len(ranked)
        return cls(len(ranked), mean, *(_percentile(ranked, share) for share in (0.50, 0.90, 0.95)))

    def to_json(self) -> dict[str, float]:
        return {"count": self.count, "mean_s": self.mean, "p50_s": self.p50, "p90_s": self.p90, "p95_s": self.p95}


def _percentile(ranked: Sequence[float], share: float) -> float:
    return ranked[max(0, math.ceil(share * len(ranked)) - 1)]
