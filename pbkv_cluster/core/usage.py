"""Hit accounting, defined once for engine, gateway, metrics, benchmarks and simulator.

A prompt token is *available* if an infinite cache would have had it, *captured* if some tier had it when the step arrived, and
*delivered* if it was read from a tier instead of being computed. Always delivered <= captured <= available <= prompt.
"""

from dataclasses import dataclass, field
from enum import StrEnum


class Tier(StrEnum):
    """Kinds of memory that hold blocks, fastest first."""

    GPU = "gpu"
    HOST = "host"
    SIBLING = "sibling"  # host memory of another worker of the same node
    REMOTE = "remote"
    DISK = "disk"


@dataclass(slots=True)
class Usage:
    """What one step cost, and what the cache saved it: tokens and seconds."""

    prompt_tokens: int = 0
    available_tokens: int = 0
    captured: dict[Tier, int] = field(default_factory=dict)
    delivered: dict[Tier, int] = field(default_factory=dict)
    computed_tokens: int = 0  # in prefill, including those computed again after a preemption
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
    prefetched_tokens: int = 0  # of those that the GPU delivered, those that had been prefetched

    def settle(self) -> None:
        """Restores delivered <= captured <= available, which concurrent steps can break.

        Blocks that another step computed while this one was queued were not there when it arrived, but are delivered: they
        count as captured. And what some tier had, an infinite cache would have had.
        """
        for tier, tokens in self.delivered.items():
            missing = sum(self.delivered.values()) - sum(self.captured.values())
            if missing > 0:
                self.captured[tier] = self.captured.get(tier, 0) + min(missing, tokens)
        self.available_tokens = max(self.available_tokens, sum(self.captured.values()))


@dataclass(slots=True)
class HitMeter:
    """Sums of usage records, and hit rates."""

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
    def recomputed_tokens(self) -> int:
        """Prompt tokens that were computed, but that an infinite cache would have had."""
        return self.available_tokens - sum(self.delivered.values())

    @property
    def available_rate(self) -> float | None:
        """Share of the prompt tokens that an infinite cache would have had; None before the first token."""
        return self._share(self.available_tokens)

    @property
    def captured_rate(self) -> float | None:
        """Share of the prompt tokens that some tier had; None before the first token."""
        return self._share(sum(self.captured.values()))

    def delivered_rate(self, tier: Tier | None = None) -> float | None:
        """Share of the prompt tokens that a tier, by default any, delivered; None before the first token."""
        return self._share(sum(self.delivered.values()) if tier is None else self.delivered.get(tier, 0))

    def _share(self, tokens: int) -> float | None:
        return tokens / self.prompt_tokens if self.prompt_tokens else None
