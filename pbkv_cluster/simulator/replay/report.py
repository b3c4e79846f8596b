"""What a replay measured: hit rates, latencies, failures."""

from dataclasses import dataclass
from typing import Any

from pbkv_cluster.core.usage import HitMeter, Tier
from pbkv_cluster.simulator.spread import Spread


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a workflow stopped early."""

    workflow: str
    step: int | None  # None: it could not be started or ended
    error: str

    def __str__(self) -> str:
        where = self.workflow if self.step is None else f"{self.workflow}, step {self.step}"
        return f"{where}: {self.error}"


@dataclass(frozen=True, slots=True)
class ReplayReport:
    """One replay. Failed steps count in `failures` alone."""

    meter: HitMeter
    ttft: Spread | None  # arrival at the gateway to first token, by step
    step_latency: Spread | None  # arrival at the gateway to last token, by step
    workflow_latency: Spread | None  # start to end including pauses, by completed workflow
    completed: int  # workflows
    retries: int  # how often a step lost its worker and went on at another
    preemptions: int
    failures: tuple[Failure, ...]
    wall_s: float

    @property
    def recomputed_tokens(self) -> int:
        """Prompt tokens that were computed, but that an infinite cache would have had."""
        return self.meter.recomputed_tokens

    def to_json(self) -> dict[str, Any]:
        """The report as JSON values: rates from 0 to 1 (null if there was no prompt token), tokens, seconds."""
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
            "step_latency": self.step_latency and self.step_latency.to_json(),
            "workflow_latency": self.workflow_latency and self.workflow_latency.to_json(),
            "retries": self.retries,
            "preemptions": self.preemptions,
            "failures": [{"workflow": item.workflow, "step": item.step, "error": item.error} for item in self.failures],
            "wall_s": self.wall_s,
        }
