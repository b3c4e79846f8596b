"""Hit accounting, defined once for the engine, the gateway, the metrics, the benchmarks and the simulator.

Per prompt token: *available* (an infinite cache would have had it), *captured* (some tier had it when the step arrived) and
*delivered* (it was used instead of being computed), by tier. Always delivered <= captured <= available <= prompt.
"""

from dataclasses import dataclass, field
from enum import StrEnum


class Tier(StrEnum):
    """Where blocks live, fastest first."""

    GPU = "gpu"
    HOST = "host"
    REMOTE = "remote"
    DISK = "disk"


@dataclass(slots=True)
class Usage:
    """What one step cost and what the cache gave: prompt tokens, and seconds."""

    prompt_tokens: int = 0
    available_tokens: int = 0
    captured: dict[Tier, int] = field(default_factory=dict)
    delivered: dict[Tier, int] = field(default_factory=dict)
    computed_tokens: int = 0  # run through prefill; again after a preemption included
    generated_tokens: int = 0
    queue_s: float = 0.0
    load_s: float = 0.0
    prefill_s: float = 0.0
    decode_s: float = 0.0
    ttft_s: float = 0.0
    total_s: float = 0.0
    preemptions: int = 0
    retries: int = 0
    worker_id: str = ""

    def settle(self) -> None:
        """Restores the order of the three counts where concurrency has bent it.

        Blocks that another step computed while this one was queued were captured by the time they were used, and what some
        tier had an infinite cache has too.
        """
        for tier, tokens in self.delivered.items():
            behind = sum(self.delivered.values()) - sum(self.captured.values())
            if behind > 0:
                self.captured[tier] = self.captured.get(tier, 0) + min(behind, tokens)
        self.available_tokens = max(self.available_tokens, sum(self.captured.values()))


@dataclass(slots=True)
class HitMeter:
    """Sums of usages, and the rates that follow from them."""

    steps: int = 0
    prompt_tokens: int = 0
    available_tokens: int = 0
    captured: dict[Tier, int] = field(default_factory=dict)
    delivered: dict[Tier, int] = field(default_factory=dict)
    computed_tokens: int = 0
    generated_tokens: int = 0

    def add(self, usage: Usage) -> None:
        self.steps += 1
        self.prompt_tokens += usage.prompt_tokens
        self.available_tokens += usage.available_tokens
        self.computed_tokens += usage.computed_tokens
        self.generated_tokens += usage.generated_tokens
        for total, part in ((self.captured, usage.captured), (self.delivered, usage.delivered)):
            for tier, tokens in part.items():
                total[tier] = total.get(tier, 0) + tokens

    @property
    def available_rate(self) -> float | None:
        """Share of the prompt tokens that an infinite cache would have had; None before the first token."""
        return self._share(self.available_tokens)

    @property
    def captured_rate(self) -> float | None:
        """Share of the prompt tokens that some tier had; None before the first token."""
        return self._share(sum(self.captured.values()))

    def delivered_rate(self, tier: Tier | None = None) -> float | None:
        """Share of the prompt tokens that a tier (by default: any) gave; None before the first token."""
        return self._share(sum(self.delivered.values()) if tier is None else self.delivered.get(tier, 0))

    def _share(self, tokens: int) -> float | None:
        return tokens / self.prompt_tokens if self.prompt_tokens else None
