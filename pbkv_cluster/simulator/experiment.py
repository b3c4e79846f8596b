"""Policies against each other over workloads, pressures and seeds: one row for each run, and their means."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from pbkv_cluster.core.clock import ManualClock
from pbkv_cluster.core.errors import InvalidArgument
from pbkv_cluster.simulator.access_logs import access_logs
from pbkv_cluster.simulator.forecasting import train as train_predictor
from pbkv_cluster.simulator.pressure import Capacity, PressureScale
from pbkv_cluster.simulator.simulation import Setup, SimulationResult, simulate
from pbkv_cluster.simulator.token_source import TokenSource
from pbkv_cluster.simulator.trace_files import Trace
from pbkv_cluster.simulator.workload import Mix, make_workload
from pbkv_cluster.store.access.model import train as train_access

BASELINE, BOUND = "lru", "oracle"


@dataclass(frozen=True, slots=True)
class Row:
    """One run. Hit rates are shares of the prompt tokens; latencies leave out the pauses between steps."""

    workload: str
    pressure: float  # the share of the infinite cache's hits that LRU was to get
    policy: str
    seed: int
    capacity_blocks: int
    hit_gpu: float
    hit_any: float
    hit_infinite: float
    ratio_to_lru: float | None  # of the GPU hit rates; None where LRU hits nothing
    gap_closed: float | None  # share of the gap in GPU hit rate between LRU and oracle; None without oracle, or without a gap
    latency_mean_s: float
    latency_p95_s: float
    ttft_mean_s: float
    recomputed_tokens: int
    preemptions: int
    pressure_measured: float  # the share that LRU got
    guard_lru_share: float | None = None  # share of the evicted GPU blocks that LRU chose; None: there was no guard

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Plan:
    """What to compare."""

    policies: tuple[str, ...]
    pressures: tuple[float, ...]
    seeds: int = 1
    host_ratio: float = 0.0  # blocks in the host tier for each of the GPU
    mix: Mix = field(default_factory=Mix)

    def __post_init__(self) -> None:
        """Raises:
        InvalidArgument: a value is out of its range, or given twice.
        """
        for name, values in (("policies", self.policies), ("pressure", self.pressures)):
            if not values or len(set(values)) != len(values) or not all(values):
                raise InvalidArgument(name, "must be different values, at least one")
        for pressure in self.pressures:
            if not 0 < pressure < 1:
                raise InvalidArgument("pressure", f"must be above 0 and below 1, got {pressure}")
        if self.seeds < 1:
            raise InvalidArgument("seeds", f"must be at least 1, got {self.seeds}")
        if not 0 <= self.host_ratio < math.inf:
            raise InvalidArgument("host_ratio", f"must be finite and not negative, got {self.host_ratio}")


def compare(
    traces: Sequence[Trace],
    plan: Plan,
    setup: Setup,
    starts: Sequence[float] | None = None,
    on_run: Callable[[], None] = lambda: None,
) -> Iterator[Row]:
    """Runs every policy of a plan on one workload, made of all of `traces`.

    Args:
        traces: what the workload is drawn from.
        plan: what to compare.
        setup: everything else; capacities and policy are the plan's.
        starts: arrival times in seconds; None: a closed loop.
        on_run: called after each run.

    Raises:
        InvalidArgument: see `make_workload`, `PressureScale` and `simulate`.
    """
    for seed in range(plan.seeds):
        tokens = TokenSource(make_workload(traces, plan.mix, seed, starts))
        seeded = replace(setup, seed=seed)
        scale = PressureScale(tokens, seeded, on_run)
        known: dict[int, dict[str, SimulationResult]] = {}  # by capacity: pressures out of reach share the least
        for pressure in plan.pressures:
            capacity = scale.find(pressure)
            if capacity.blocks not in known:
                known[capacity.blocks] = _run_all(tokens, plan, seeded, capacity, on_run)
            results = known[capacity.blocks]
            for policy in plan.policies:
                yield _row(tokens, policy, seed, pressure, capacity, scale.infinite, results)


def _run_all(
    tokens: TokenSource, plan: Plan, setup: Setup, capacity: Capacity, on_run: Callable[[], None]
) -> dict[str, SimulationResult]:
    """The runs of all policies at one capacity, and LRU's."""
    host = round(plan.host_ratio * capacity.blocks)
    sized = replace(setup, gpu_blocks=capacity.blocks, host_blocks=host)
    undisturbed = replace(sized, adversary=False, noise=0.0)
    results = {BASELINE: capacity.lru} if host == 0 else {}
    for policy in (BASELINE, *plan.policies):
        if policy not in results:
            chosen = undisturbed if policy in (BASELINE, BOUND) else sized
            results[policy] = simulate(tokens, replace(chosen, policy=policy), results.get(BASELINE))
            on_run()
    return results


def _row(
    tokens: TokenSource,
    policy: str,
    seed: int,
    pressure: float,
    capacity: Capacity,
    infinite: SimulationResult,
    results: Mapping[str, SimulationResult],
) -> Row:
    result, lru, bound = results[policy], results[BASELINE], results.get(BOUND)
    gap = bound.hit_gpu - lru.hit_gpu if bound else 0.0
    assert result.latency is not None, "a workload has at least one step"
    assert result.ttft is not None
    return Row(
        workload=tokens.workload.name,
        pressure=pressure,
        policy=policy,
        seed=seed,
        capacity_blocks=capacity.blocks,
        hit_gpu=result.hit_gpu,
        hit_any=result.hit_any,
        hit_infinite=infinite.hit_gpu,
        ratio_to_lru=result.hit_gpu / lru.hit_gpu if lru.hit_gpu else None,
        gap_closed=(result.hit_gpu - lru.hit_gpu) / gap if gap > 0 else None,
        latency_mean_s=result.latency.mean,
        latency_p95_s=result.latency.p95,
        ttft_mean_s=result.ttft.mean,
        recomputed_tokens=result.meter.available_tokens - sum(result.meter.delivered.values()),
        preemptions=result.preemptions,
        pressure_measured=capacity.share,
        guard_lru_share=None if result.guard is None else result.guard.lru_share,
    )


def train_state(setup: Setup, traces: Sequence[Trace]) -> Setup:
    """The setup with a predictor and an access model that have seen the workflows of some traces, one after the other."""
    workflows = [workflow for trace in traces for workflow in trace.workflows]
    return replace(
        setup,
        predictor_state=train_predictor(setup.predictor, workflows, ManualClock()),
        access=train_access(access_logs(workflows)),
    )


def means(rows: Sequence[Row], name: str) -> float | None:
    """The mean of one column over some rows, without those that lack it."""
    values = [value for row in rows if (value := getattr(row, name)) is not None]
    return math.fsum(values) / len(values) if values else None
