"""What one simulated run returns."""

from collections import Counter
from dataclasses import dataclass

from pbkv_cluster.cache.observer import GuardStat
from pbkv_cluster.core.usage import HitMeter, Tier
from pbkv_cluster.simulator.spread import Spread


@dataclass(frozen=True, slots=True)
class StepRecord:
    """How one step ran. Times are seconds since the start of the run."""

    arrival: int
    position: int
    submitted_at: float
    started_at: float  # admitted to the batch
    ended_at: float
    delivered: tuple[tuple[Tier, int], ...]  # tokens by tier


@dataclass(frozen=True, slots=True)
class SimulationResult:
    """One run."""

    meter: HitMeter
    ttft: Spread | None  # submission to first token, by step
    latency: Spread | None  # by workflow: sum over its steps of submission to last token, without the pauses between them
    decisions: Counter[str]
    preemptions: int
    guard: GuardStat | None  # None: the policy ran without a guard
    steps: tuple[StepRecord, ...]  # in the order in which they ended
    seconds: float

    @property
    def hit_gpu(self) -> float:
        """Share of the prompt tokens that the GPU tier delivered."""
        return self.meter.delivered_rate(Tier.GPU) or 0.0

    @property
    def hit_any(self) -> float:
        """Share of the prompt tokens that any tier delivered."""
        return self.meter.delivered_rate() or 0.0
