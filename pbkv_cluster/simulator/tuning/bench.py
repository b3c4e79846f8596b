"""Runs candidate settings in cells: workloads at pressures."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import NamedTuple

from pbkv_cluster.core.config import CacheConfig, Config, PredictorConfig
from pbkv_cluster.core.errors import InvalidArgument
from pbkv_cluster.simulator.engine.simulation import Setup
from pbkv_cluster.simulator.evaluation.comparison import BASELINE, Comparison
from pbkv_cluster.simulator.evaluation.experiment import train_state
from pbkv_cluster.simulator.evaluation.row import Row
from pbkv_cluster.simulator.traces.files import Trace
from pbkv_cluster.simulator.tuning.knobs import Values, with_values
from pbkv_cluster.simulator.tuning.objective import Objective
from pbkv_cluster.simulator.tuning.plan import TuningPlan
from pbkv_cluster.simulator.tuning.result import CellName, Trial
from pbkv_cluster.simulator.workload.token_source import TokenSource
from pbkv_cluster.simulator.workload.workload import Mix, make_workload


class Cell(NamedTuple):
    """One workload at one pressure, and LRU's row there."""

    name: CellName
    comparison: Comparison
    lru: Row


class Bench:
    """Makes cells and runs candidates in them."""

    def __init__(
        self,
        config: Config,
        setup: Setup,
        training: Sequence[Trace],
        plan: TuningPlan,
        on_run: Callable[[int], None],
    ) -> None:
        """Args:
        config: the present settings, on top of which a candidate's values are set.
        setup: everything else.
        training: workflows on which predictor and access model are trained before every run.
        plan: what to search.
        on_run: called after each run with the number of runs of candidates so far.
        """
        self._config = config
        self._setup = setup
        self._training = training
        self._plan = plan
        self._on_run = on_run
        self._runs = 0
        self._trained: dict[tuple[CacheConfig, PredictorConfig], Setup] = {}

    def cells(self, workloads: Iterable[tuple[Trace, Mix]]) -> list[Cell]:
        """Every workload at every pressure. Pressures of one workload that need the same capacity share a cell.

        Args:
            workloads: what each is made of, and how.

        Raises:
            InvalidArgument: LRU hits nothing in any.
        """
        found: dict[tuple[int, int], Cell] = {}
        for number, (trace, mix) in enumerate(workloads):
            tokens = TokenSource(make_workload([trace], mix, self._plan.seed))
            comparison = Comparison(tokens, self._setup, self._plan.host_ratio, lambda: self._on_run(self._runs))
            for pressure in self._plan.pressures:
                lru = comparison.row(BASELINE, pressure)
                name = CellName(trace.name, pressure, lru.pressure_measured, lru.capacity_blocks)
                if lru.hit_any:
                    found.setdefault((number, lru.capacity_blocks), Cell(name, comparison, lru))
        if not found:
            raise InvalidArgument("pressure", "LRU hits nothing at any: there is nothing to compare with")
        return list(found.values())

    def trial(self, values: Values, cells: Sequence[Cell]) -> Trial:
        """Runs a candidate in some cells."""
        return self.extend(Trial(values, ()), cells)

    def extend(self, trial: Trial, cells: Sequence[Cell]) -> Trial:
        """Runs a candidate in those of the cells that it has not run in yet, which come last."""
        setup = self._setup_of(with_values(self._config, trial.values))
        scores = list(trial.scores)
        for cell in cells[len(scores) :]:
            self._runs += 1
            scores.append(self._score(cell, cell.comparison.row(str(trial.values["cache.policy"]), cell.name.pressure, setup)))
        return replace(trial, scores=tuple(scores))

    def _score(self, cell: Cell, row: Row) -> float:
        if self._plan.objective is Objective.LATENCY:
            return cell.lru.latency_mean_s / row.latency_mean_s
        return row.hit_any / cell.lru.hit_any

    def _setup_of(self, config: Config) -> Setup:
        setup = replace(self._setup, cache=config.cache, predictor=config.predictor)
        if not self._training:
            return setup
        key = config.cache, config.predictor
        if key not in self._trained:
            self._trained[key] = train_state(setup, self._training)
        return self._trained[key]
