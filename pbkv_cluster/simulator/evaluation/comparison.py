"""Compares policies on one workload. Runs that several rows need, of LRU and the oracle, are made once."""

from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import NamedTuple

from pbkv_cluster.simulator.engine.result import SimulationResult
from pbkv_cluster.simulator.engine.simulation import Setup, simulate
from pbkv_cluster.simulator.evaluation.pressure import PressureScale
from pbkv_cluster.simulator.evaluation.row import Row, figures, gap_closed, gpu_gap_closed, ratios
from pbkv_cluster.simulator.workload.token_source import TokenSource

BASELINE, BOUND = "lru", "oracle"


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
        sized: Iterable[Row] = (),
        disk_ratio: float = 0.0,
    ) -> None:
        """Args:
        tokens: the workload.
        setup: everything else; its capacities and policy are ignored.
        host_ratio: host blocks per GPU block.
        on_run: called after each run.
        known: rows of an earlier comparison of the same workload, seed and host ratio, which are not made again.
        sized: LRU's rows of the same workload and seed with any host ratio. Pressure is that of the GPU alone, so they tell
            which capacities give it.
        disk_ratio: disk blocks per GPU block.
        """
        self._tokens = tokens
        self._setup = setup
        self._host_ratio = host_ratio
        self._disk_ratio = disk_ratio
        self._on_run = on_run
        self._scale: PressureScale | None = None
        self._bases: dict[float, _Base] = {}
        self._references: dict[tuple[str, int], SimulationResult] = {}  # by LRU or the oracle, and blocks
        self._rows: dict[tuple[str, int], Row] = {}  # likewise: pressures can share a capacity
        for row in (*sized, *known):
            if row.policy == BASELINE:
                self._bases[row.pressure] = _Base(row.capacity_blocks, row.pressure_measured, row.hit_infinite)
        for row in known:
            if row.policy in (BASELINE, BOUND):
                self._rows[row.policy, row.capacity_blocks] = row

    def row(self, policy: str, pressure: float, setup: Setup | None = None) -> Row:
        """The row of one policy. Its gaps are known if the oracle's row was made before, or was among the known rows.

        Args:
            policy: its name.
            pressure: share of the infinite cache's hits that LRU is to get.
            setup: used for this run instead of the comparison's, unless the policy is LRU or the oracle.

        Raises:
            InvalidArgument: see `PressureScale` and `simulate`.
        """
        base = self._base(pressure)
        if policy in (BASELINE, BOUND):
            row = self._reference_row(policy, pressure)
        else:
            row = self._row(policy, pressure, self._simulate(policy, base.blocks, setup or self._setup))
        lru = self._reference_row(BASELINE, pressure)
        row = replace(row, pressure=pressure, over_lru=ratios(row, lru))
        oracle = self._rows.get((BOUND, base.blocks))
        if oracle is None or oracle.bound_tokens is None:
            return row
        return replace(
            row,
            bound_tokens=oracle.bound_tokens,
            gap_closed=gap_closed(row, lru, oracle.bound_tokens),
            gpu_gap_closed=gpu_gap_closed(row, lru, oracle),
        )

    def _base(self, pressure: float) -> _Base:
        if pressure not in self._bases:
            if self._scale is None:
                self._scale = PressureScale(self._tokens, self._setup, self._on_run)
            found = self._scale.find(pressure)
            self._bases[pressure] = _Base(found.blocks, found.share, self._scale.infinite.hit_gpu)
            if not self._host_blocks(found.blocks) and not self._disk_blocks(found.blocks):
                self._references[BASELINE, found.blocks] = found.lru
        return self._bases[pressure]

    def _reference_row(self, policy: str, pressure: float) -> Row:
        blocks = self._base(pressure).blocks
        if (policy, blocks) not in self._rows:
            row = self._row(policy, pressure, self._reference(policy, blocks))
            if policy == BOUND:
                row = replace(row, bound_tokens=min(row.recomputed_tokens, self._with_all_on_gpu(blocks)))
            self._rows[policy, blocks] = row
        return self._rows[policy, blocks]

    def _reference(self, policy: str, blocks: int) -> SimulationResult:
        if (policy, blocks) not in self._references:
            self._references[policy, blocks] = self._simulate(policy, blocks, self._setup)
        return self._references[policy, blocks]

    def _with_all_on_gpu(self, blocks: int) -> int:
        """Tokens that the oracle recomputes with all memory on one GPU: nothing lies in two places."""
        setup, host_blocks = self._setup, self._host_blocks(blocks)
        if not host_blocks and setup.workers == 1:
            return self._reference(BOUND, blocks).recomputed_tokens
        engine = setup.engine.model_copy(
            update={name: setup.workers * getattr(setup.engine, name) for name in ("max_running", "max_batch_tokens")}
        )
        setup = replace(
            setup,
            policy=BOUND,
            workers=1,
            gpu_blocks=setup.workers * (blocks + host_blocks + self._disk_blocks(blocks)),
            host_blocks=0,
            engine=engine,
            adversary=False,
            noise=0.0,
        )
        result = simulate(self._tokens, setup, self._reference(BASELINE, blocks))
        self._on_run()
        return result.recomputed_tokens

    def _row(self, policy: str, pressure: float, result: SimulationResult) -> Row:
        base = self._base(pressure)
        return Row(
            workload=self._tokens.workload.name,
            pressure=pressure,
            policy=policy,
            seed=self._setup.seed,
            capacity_blocks=base.blocks,
            host_blocks=self._host_blocks(base.blocks),
            disk_blocks=self._disk_blocks(base.blocks),
            hit_infinite=base.hit_infinite,
            pressure_measured=base.share,
            **figures(result),
        )

    def _simulate(self, policy: str, blocks: int, setup: Setup) -> SimulationResult:
        if policy in (BASELINE, BOUND):  # LRU on every tier, as a cache without us would be; the oracle sees to itself
            cache = setup.cache.model_copy(update={"host_policy": BASELINE, "prefetch": "none", "stage": False})
            setup = replace(setup, adversary=False, noise=0.0, cache=cache)
        reference = self._reference(BASELINE, blocks) if policy == BOUND else None
        host, disk = self._host_blocks(blocks), self._disk_blocks(blocks)
        sized = replace(setup, policy=policy, gpu_blocks=blocks, host_blocks=host, disk_blocks=disk)
        result = simulate(self._tokens, sized, reference)
        self._on_run()
        return result

    def _host_blocks(self, blocks: int) -> int:
        return round(self._host_ratio * blocks)

    def _disk_blocks(self, blocks: int) -> int:
        return round(self._disk_ratio * blocks)
