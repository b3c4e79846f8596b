"""What one simulated run returns."""

import math
from collections import Counter
from dataclasses import dataclass, field, fields

from pbkv_cluster.cache.observer import GuardStat
from pbkv_cluster.cache.tiers.prefetch_ledger import PrefetchCount
from pbkv_cluster.core.usage import HitMeter, Tier, Usage
from pbkv_cluster.simulator.spread import Spread


@dataclass(frozen=True, slots=True)
class StepRecord:
    """How one step ran. Times are seconds since the start of the run."""

    arrival: int
    position: int
    worker: int
    submitted_at: float
    started_at: float  # admitted to the batch
    ended_at: float
    delivered: tuple[tuple[Tier, int], ...]  # tokens by tier
    available_tokens: int  # that an infinite cache would have had
    ttft_s: float

    @property
    def recomputed_tokens(self) -> int:
        """Tokens that were computed, but that an infinite cache would have had."""
        return self.available_tokens - sum(tokens for _, tokens in self.delivered)


@dataclass(slots=True)
class TimeSplit:
    """What the time of all workflows goes to, in seconds. Steps that run side by side each count in full."""

    tool_s: float = 0.0  # pauses between steps
    queue_s: float = 0.0  # submission to admission
    load_s: float = 0.0  # waiting for blocks of the prompt to be loaded
    prefill_s: float = 0.0  # admission to first token, which includes the batches of others in between
    decode_s: float = 0.0

    def add(self, usage: Usage) -> None:
        """Counts one step."""
        self.queue_s += usage.queue_s
        self.load_s += usage.load_s
        self.prefill_s += usage.prefill_s
        self.decode_s += usage.decode_s

    def shares(self) -> dict[str, float]:
        """The share of each kind; all 0 if nothing has taken any time."""
        seconds = {item.name.removesuffix("_s"): getattr(self, item.name) for item in fields(self)}
        total = math.fsum(seconds.values())
        return {kind: part / total if total else 0.0 for kind, part in seconds.items()}


@dataclass(frozen=True, slots=True)
class SimulationResult:
    """One run."""

    meter: HitMeter
    time: TimeSplit
    ttft: Spread | None  # submission to first token, by step
    step: Spread | None  # submission to last token, by step
    latency: Spread | None  # by workflow: sum over its steps of submission to last token, without the pauses between them
    decisions: Counter[str]
    preemptions: int
    worker_changes: int  # steps that ran on another worker than their workflow's step before
    prefetched: PrefetchCount  # blocks, of all workers
    staged: PrefetchCount  # likewise
    guards: tuple[GuardStat, ...]  # of each worker; empty: the policy ran without a guard
    steps: tuple[StepRecord, ...]  # in the order in which they ended
    seconds: float  # of virtual time
    cpu_s: float = field(compare=False)  # processor time that the run took; equal runs differ in it

    @property
    def guard(self) -> GuardStat | None:
        """The first worker's, which is the only one where nothing else was set up; None without a guard."""
        return self.guards[0] if self.guards else None

    @property
    def guard_lru_share(self) -> float | None:
        """Share of the blocks evicted from GPUs that LRU chose; None without a guard."""
        by_lru = sum(guard.evicted_by_lru for guard in self.guards)
        evicted = by_lru + sum(guard.evicted_by_policy for guard in self.guards)
        return (by_lru / evicted if evicted else 0.0) if self.guards else None

    @property
    def recomputed_tokens(self) -> int:
        """Prompt tokens that were computed, but that an infinite cache would have had."""
        return self.meter.recomputed_tokens

    @property
    def hit_gpu(self) -> float:
        """Share of the prompt tokens that the GPU tier delivered."""
        return self.meter.delivered_rate(Tier.GPU) or 0.0

    @property
    def hit_any(self) -> float:
        """Share of the prompt tokens that any tier delivered."""
        return self.meter.delivered_rate() or 0.0
