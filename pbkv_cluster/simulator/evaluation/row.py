"""The figures of one run, and how they compare with LRU's and the oracle's at the same capacities."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from pbkv_cluster.core.tokens import BLOCK_TOKENS
from pbkv_cluster.simulator.engine.result import SimulationResult

SECONDS = ("ttft_mean_s", "ttft_p90_s", "step_mean_s", "step_p90_s", "latency_mean_s", "latency_p90_s")
OVER_LRU = ("recomputed_tokens", *SECONDS, "hit_any", "hit_gpu")
"""Figures that are divided by LRU's."""

_TARGET_TOLERANCE = 0.05  # of the requested pressure


def on_target(pressure: float, measured: float) -> bool:
    """Whether the measured pressure of a capacity is close enough to the requested one for rows to be compared."""
    return abs(measured - pressure) <= _TARGET_TOLERANCE


@dataclass(frozen=True, slots=True)
class Row:
    """One run. Seconds of steps are from submission; those of a workflow are without the pauses between its steps."""

    workload: str
    pressure: float  # requested share of the infinite cache's GPU hits that LRU gets
    policy: str
    seed: int
    capacity_blocks: int  # of each GPU
    host_blocks: int  # beside each GPU
    recomputed_tokens: int  # computed, though an infinite cache would have had them
    available_tokens: int
    ttft_mean_s: float
    ttft_p90_s: float
    step_mean_s: float
    step_p90_s: float
    latency_mean_s: float
    latency_p90_s: float
    hit_any: float  # share of the prompt tokens that any tier delivered
    hit_gpu: float  # share that the GPU delivered
    hit_infinite: float
    preemptions: int
    worker_changes: int  # steps on another worker than their workflow's step before
    pressure_measured: float  # share of the infinite cache's GPU hits that LRU got
    time_shares: Mapping[str, float]  # of all workflows' time, with pauses: tool, queue, load, prefill, decode
    prefetched_tokens: int = 0  # loaded to the GPU ahead of their use
    prefetch_used_tokens: int = 0  # of those, tokens that steps used while they lay there
    disk_blocks: int = 0  # beside each GPU
    staged_tokens: int = 0  # brought from the disk to host memory ahead of their use
    stage_used_tokens: int = 0  # of those, tokens that steps used while they lay there, or on the GPU
    guard_lru_share: float | None = None  # share of the evicted GPU blocks that LRU chose; None: there was no guard
    over_lru: Mapping[str, float | None] | None = None  # figures divided by LRU's, which is None where that is 0
    bound_tokens: int | None = None  # recomputed at least, whatever the policy; None: the oracle has not run
    gap_closed: float | None = None  # share of what LRU recomputes beyond that; None: no oracle, or nothing beyond
    gpu_gap_closed: float | None = None  # share of the oracle's gain over LRU in GPU hits; None likewise
    cpu_s: float | None = field(default=None, compare=False)  # processor time of the run; None: not measured

    @property
    def on_target(self) -> bool:
        """Whether the measured pressure is close to the requested one; if not, the row says nothing about the latter."""
        return on_target(self.pressure, self.pressure_measured)

    def to_json(self) -> dict[str, Any]:
        """All that equal seeds determine, which processor time is not."""
        return {name: value for name, value in asdict(self).items() if name != "cpu_s"}


def figures(result: SimulationResult) -> dict[str, Any]:
    """The fields of a row that come from its run alone."""
    assert result.ttft is not None, "a workload has at least one step"
    assert result.step is not None
    assert result.latency is not None
    return {
        "recomputed_tokens": result.recomputed_tokens,
        "available_tokens": result.meter.available_tokens,
        "ttft_mean_s": result.ttft.mean,
        "ttft_p90_s": result.ttft.p90,
        "step_mean_s": result.step.mean,
        "step_p90_s": result.step.p90,
        "latency_mean_s": result.latency.mean,
        "latency_p90_s": result.latency.p90,
        "hit_any": result.hit_any,
        "hit_gpu": result.hit_gpu,
        "preemptions": result.preemptions,
        "prefetched_tokens": result.prefetched.loaded * BLOCK_TOKENS,
        "prefetch_used_tokens": result.prefetched.used * BLOCK_TOKENS,
        "staged_tokens": result.staged.loaded * BLOCK_TOKENS,
        "stage_used_tokens": result.staged.used * BLOCK_TOKENS,
        "time_shares": result.time.shares(),
        "guard_lru_share": result.guard_lru_share,
        "worker_changes": result.worker_changes,
        "cpu_s": result.cpu_s,
    }


def ratios(row: Row, lru: Row) -> dict[str, float | None]:
    """The figures of a row divided by LRU's."""
    return {name: getattr(row, name) / getattr(lru, name) if getattr(lru, name) else None for name in OVER_LRU}


def gap_closed(row: Row, lru: Row, bound_tokens: int) -> float | None:
    """The share of what LRU recomputes beyond the bound that is saved; None if LRU is the bound."""
    gap = lru.recomputed_tokens - bound_tokens
    return (lru.recomputed_tokens - row.recomputed_tokens) / gap if gap > 0 else None


def gpu_gap_closed(row: Row, lru: Row, oracle: Row) -> float | None:
    """The share of the oracle's gain over LRU in GPU hits; None if it gains nothing."""
    gap = oracle.hit_gpu - lru.hit_gpu
    return (row.hit_gpu - lru.hit_gpu) / gap if gap > 0 else None
