"""What a replay found out: hit rates, latencies, failures."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pbkv_cluster.core.usage import HitMeter, Tier


@dataclass(frozen=True, slots=True)
class Spread:
    """Seconds, over `count` observations. Percentiles are nearest-rank: times that did occur."""

    count: int
    mean: float
    p50: float
    p95: float

    @classmethod
    def of(cls, seconds: Sequence[float]) -> "Spread | None":
        """The spread of some times; None of no times."""
        if not seconds:
            return None
        ranked = sorted(seconds)
        return cls(len(ranked), math.fsum(ranked) / len(ranked), _percentile(ranked, 0.50), _percentile(ranked, 0.95))

    def to_json(self) -> dict[str, float]:
        return {"count": self.count, "mean_s": self.mean, "p50_s": self.p50, "p95_s": self.p95}


def _percentile(ranked: Sequence[float], share: float) -> float:
    return ranked[max(0, math.ceil(share * len(ranked)) - 1)]


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a workflow stopped early."""

    workflow: str
    step: int | None  # None: outside a step, when it was started or ended
    error: str

    def __str__(self) -> str:
        where = self.workflow if self.step is None else f"{self.workflow}, step {self.step}"
        return f"{where}: {self.error}"


@dataclass(frozen=True, slots=True)
class ReplayReport:
    """One replay, over the steps that succeeded."""

    meter: HitMeter
    ttft: Spread | None  # arrival at the gateway to first token, by step
    workflow_latency: Spread | None  # start to end with pauses, by workflow that was completed
    completed: int  # workflows
    retries: int  # workers that were lost under a step which succeeded elsewhere
    preemptions: int
    failures: tuple[Failure, ...]
    wall_s: float

    @property
    def recomputed_tokens(self) -> int:
        """Prompt tokens that were computed although an infinite cache would have had them."""
        return self.meter.available_tokens - sum(self.meter.delivered.values())

    def to_json(self) -> dict[str, Any]:
        """The report as values that JSON has: rates in [0, 1] (null without a prompt token), tokens, seconds."""
        meter = self.meter
        return {
            "steps": meter.steps,
            "workflows_completed": self.completed,
            "prompt_tokens": meter.prompt_tokens,
            "generated_tokens": meter.generated_tokens,
            "computed_tokens": meter.computed_tokens,
            "available_tokens": meter.available_tokens,
            "captured_tokens": {tier.value: meter.captured.get(tier, 0) for tier in Tier},
            "delivered_tokens": {tier.value: meter.delivered.get(tier, 0) for tier in Tier},
            "recomputed_tokens": self.recomputed_tokens,
            "available_rate": meter.available_rate,
            "captured_rate": meter.captured_rate,
            "delivered_rate": meter.delivered_rate(),
            "delivered_rate_by_tier": {tier.value: meter.delivered_rate(tier) for tier in Tier},
            "ttft": self.ttft and self.ttft.to_json(),
            "workflow_latency": self.workflow_latency and self.workflow_latency.to_json(),
            "retries": self.retries,
            "preemptions": self.preemptions,
            "failures": [{"workflow": item.workflow, "step": item.step, "error": item.error} for item in self.failures],
            "wall_s": self.wall_s,
        }
