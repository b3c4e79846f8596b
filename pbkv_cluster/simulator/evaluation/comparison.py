"""Compares policies on one workload. Runs that several rows need, of LRU and the oracle, are made once."""

from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, replace
from typing import Any, NamedTuple

from pbkv_cluster.simulator.engine.result import SimulationResult
from pbkv_cluster.simulator.engine.simulation import Setup, simulate
from pbkv_cluster.simulator.evaluation.pressure import PressureScale
from pbkv_cluster.simulator.workload.token_source import TokenSource

BASELINE, BOUND = "lru", "oracle"
_TARGET_TOLERANCE = 0.05  # of the requested pressure


def on_target(pressure: float, measured: float) -> bool:
    """Whether the measured pressure of a capacity is close enough to the requested one for rows to be compared."""
    return abs(measured - pressure) <= _TARGET_TOLERANCE


@dataclass(frozen=True, slots=True)
class Row:
    """One run. Hit rates are shares of the prompt tokens; latencies exclude the pauses between steps."""

    workload: str
    pressure: float  # requested share of the infinite cache's hits that LRU gets
    policy: str
    seed: int
    capacity_blocks: int
    hit_gpu: float
    hit_any: float
    hit_infinite: float
    ratio_to_lru: float | None  # of the GPU hit rates; None if LRU hits nothing
    gap_closed: float | None  # share of the gap in GPU hit rate from LRU to the oracle; None without an oracle or a gap
    latency_mean_s: float
    latency_p95_s: float
    ttft_mean_s: float
    recomputed_tokens: int
    preemptions: int
    pressure_measured: float  # share of the infinite cache's hits that LRU got
    guard_lru_share: float | None = None  # share of the evicted GPU blocks that LRU chose; None: there was no guard

    @property
    def on_target(self) -> bool:
        """Whether the measured pressure is close to the requested one; if not, the row says nothing about the latter."""
        return on_target(self.pressure, self.pressure_measured)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


class _Base(NamedTuple):
    """The capacity that gives a pressure on this workload."""

    blocks: int
    share: float  # of the infinite cache's hits that LRU gets
    hit_infinite: float


class Comparison:
    """One workload with one seed. Capacities, and the runs of LRU and the oracle, are found when they are first needed."""

    def __init__(
        self,
        tokens: TokenSource,
        setup: Setup,
        host_ratio: float = 0.0,
        on_run: Callable[[], None] = lambda: None,
        known: Iterable[Row] = (),
    ) -> None:
        """Args:
        tokens: the workload.
        setup: everything else; its capacities and policy are ignored.
        host_ratio: host blocks per GPU block.
        on_run: called after each run.
        known: rows of an earlier comparison of the same workload and seed, whose capacities and gaps are used again.
        """
        self._tokens = tokens
        self._setup = setup
        self._host_ratio = host_ratio
        self._on_run = on_run
        self._scale: PressureScale | None = None
        self._bases: dict[float, _Base] = {}
        self._results: dict[tuple[str, int], SimulationResult] = {}  # by policy and blocks: pressures can share a capacity
        self._hits: dict[tuple[str, int], float] = {}  # GPU hit rates of LRU and the oracle
        for row in known:
            if row.policy == BASELINE:
                self._bases[row.pressure] = _Base(row.capacity_blocks, row.pressure_measured, row.hit_infinite)
            if row.policy in (BASELINE, BOUND):
                self._hits[row.policy, row.capacity_blocks] = row.hit_gpu

    def row(self, policy: str, pressure: float, setup: Setup | None = None) -> Row:
        """The row of one policy. Its gap is known if the oracle's row was made before, or was among the known rows.

        Args:
            policy: its name.
            pressure: share of the infinite cache's hits that LRU is to get.
            setup: used for this run instead of the comparison's, unless the policy is LRU or the oracle.

        Raises:
            InvalidArgument: see `PressureScale` and `simulate`.
        """
        base = self._base(pressure)
        if setup is not None and policy not in (BASELINE, BOUND):
            result = self._simulate(policy, base.blocks, setup)
        else:
            result = self._result(policy, base.blocks)
        lru = self._hit(BASELINE, base.blocks)
        gap = self._hits.get((BOUND, base.blocks), lru) - lru
        assert result.latency is not None, "a workload has at least one step"
        assert result.ttft is not None
        return Row(
            workload=self._tokens.workload.name,
            pressure=pressure,
            policy=policy,
            seed=self._setup.seed,
            capacity_blocks=base.blocks,
            hit_gpu=result.hit_gpu,
            hit_any=result.hit_any,
            hit_infinite=base.hit_infinite,
            ratio_to_lru=result.hit_gpu / lru if lru else None,
            gap_closed=(result.hit_gpu - lru) / gap if gap > 0 else None,
            latency_mean_s=result.latency.mean,
            latency_p95_s=result.latency.p95,
            ttft_mean_s=result.ttft.mean,
            recomputed_tokens=result.meter.available_tokens - sum(result.meter.delivered.values()),
            preemptions=result.preemptions,
            pressure_measured=base.share,
            guard_lru_share=None if result.guard is None else result.guard.lru_share,
        )

    def _base(self, pressure: float) -> _Base:
        if pressure not in self._bases:
            if self._scale is None:
                self._scale = PressureScale(self._tokens, self._setup, self._on_run)
            found = self._scale.find(pressure)
            self._bases[pressure] = _Base(found.blocks, found.share, self._scale.infinite.hit_gpu)
            if self._host_blocks(found.blocks) == 0:
                self._results[BASELINE, found.blocks] = found.lru
        return self._bases[pressure]

    def _hit(self, policy: str, blocks: int) -> float:
        if (policy, blocks) not in self._hits:
            self._result(policy, blocks)
        return self._hits[policy, blocks]

    def _result(self, policy: str, blocks: int) -> SimulationResult:
        if (policy, blocks) not in self._results:
            self._results[policy, blocks] = self._simulate(policy, blocks, self._setup)
        result = self._results[policy, blocks]
        if policy in (BASELINE, BOUND):
            self._hits[policy, blocks] = result.hit_gpu
        return result

    def _simulate(self, policy: str, blocks: int, setup: Setup) -> SimulationResult:
        if policy in (BASELINE, BOUND):
            setup = replace(setup, adversary=False, noise=0.0)
        reference = self._result(BASELINE, blocks) if policy == BOUND else None
        sized = replace(setup, policy=policy, gpu_blocks=blocks, host_blocks=self._host_blocks(blocks))
        result = simulate(self._tokens, sized, reference)
        self._on_run()
        return result

    def _host_blocks(self, blocks: int) -> int:
        return round(self._host_ratio * blocks)
