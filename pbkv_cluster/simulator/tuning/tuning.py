"""Searches settings of the policy and the predictor on recorded workflows, and has them prove themselves on tasks held back.

The search is successive halving (Jamieson & Talwalkar, AISTATS 2016): all candidates run in one cell (a trace at a pressure),
the better half of them in twice as many, and so on, so that most of the budget goes to the best. What the configuration says
now is one of them, and runs in every cell. Only the winner sees the held-out tasks: its result there is not one of many.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from random import Random
from typing import Any, NamedTuple

from pbkv_cluster.core.config import CacheConfig, Config, PredictorConfig
from pbkv_cluster.core.errors import InvalidArgument
from pbkv_cluster.simulator.engine.simulation import Setup
from pbkv_cluster.simulator.evaluation.comparison import BASELINE, BOUND, Comparison, Row, reached
from pbkv_cluster.simulator.evaluation.experiment import train_state
from pbkv_cluster.simulator.traces.files import Trace
from pbkv_cluster.simulator.traces.split import split
from pbkv_cluster.simulator.tuning.knobs import Values, knobs_of, spread, values_of, with_values
from pbkv_cluster.simulator.tuning.objective import Objective
from pbkv_cluster.simulator.workload.token_source import TokenSource
from pbkv_cluster.simulator.workload.workload import Mix, make_workload

LEAST_GAIN = 0.001  # over the present settings, in the objective: less is luck
_TRAIN, _FIT, _HELD = "train", "fit", "held out"


@dataclass(frozen=True, slots=True)
class TuningPlan:
    """What to search."""

    policies: tuple[str, ...]
    pressures: tuple[float, ...]
    budget: int = 40  # runs of candidates; those that find capacities, and those on held-out tasks, come on top
    objective: Objective = Objective.HIT
    hold_out: float = 0.3  # share of the tasks
    train: float = 0.0  # share of the tasks that all has learnt from before
    seed: int = 0
    host_ratio: float = 2.0
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
        if BOUND in self.policies:
            raise InvalidArgument("policies", f"{BOUND} knows the future: no cluster can run it")
        if not 0 < self.hold_out < 1:
            raise InvalidArgument("hold_out", f"must be above 0 and below 1, got {self.hold_out}")
        if not 0 <= self.train < 1 - self.hold_out:
            raise InvalidArgument("train", f"must leave tasks beside {self.hold_out:g} held out, got {self.train}")
        if not 0 <= self.host_ratio < math.inf:
            raise InvalidArgument("host_ratio", f"must be finite and not negative, got {self.host_ratio}")


@dataclass(frozen=True, slots=True)
class Trial:
    """What became of a candidate."""

    values: Values
    scores: tuple[float, ...]  # of the cells it ran in, in the order of `Tuning.cells`

    @property
    def score(self) -> float:
        return math.fsum(self.scores) / len(self.scores)


class CellName(NamedTuple):
    """One workload at one pressure."""

    workload: str
    pressure: float  # that LRU was to get
    measured: float  # that it got
    capacity_blocks: int

    @property
    def reached(self) -> bool:
        """Whether LRU got about that; if not, no capacity is nearer."""
        return reached(self.pressure, self.measured)


@dataclass(frozen=True, slots=True)
class Tuning:
    """What a search found."""

    objective: Objective
    cells: tuple[CellName, ...]  # of the tasks searched on
    trials: tuple[Trial, ...]  # the first is the present settings; the others by how far they came
    held_cells: tuple[CellName, ...]
    held_present: Trial
    held_winner: Trial | None  # None: the present settings won on the tasks searched on already

    @property
    def accepted(self) -> bool:
        """Whether the winner is better on the held-out tasks too."""
        return self.held_winner is not None and self.held_winner.score >= self.held_present.score + LEAST_GAIN

    @property
    def chosen(self) -> Values:
        """The settings to use."""
        return self.held_winner.values if self.held_winner is not None and self.accepted else self.trials[0].values

    def to_json(self) -> dict[str, Any]:
        def trial(of: Trial | None) -> dict[str, Any] | None:
            return None if of is None else {"values": dict(of.values), "score": of.score, "scores": list(of.scores)}

        return {
            "objective": self.objective.value,
            "accepted": self.accepted,
            "chosen": dict(self.chosen),
            "held_out": {
                "cells": [cell._asdict() for cell in self.held_cells],
                "present": trial(self.held_present),
                "winner": trial(self.held_winner),
            },
            "searched": {"cells": [cell._asdict() for cell in self.cells], "trials": [trial(each) for each in self.trials]},
        }


def tune(
    traces: Sequence[Trace],
    plan: TuningPlan,
    config: Config,
    setup: Setup,
    training: Sequence[Trace] = (),
    on_run: Callable[[int], None] = lambda runs: None,
) -> Tuning:
    """Searches, and tests what it found.

    Args:
        traces: the user's workflows; each is a workload of its own.
        plan: what to search.
        config: the present settings.
        setup: the cost model; cache, engine and predictor are the configuration's.
        training: workflows that all has learnt from before, beside the plan's share.
        on_run: called after every run with the number of those that were of candidates.

    Raises:
        InvalidArgument: a trace has too few tasks, nothing can be tuned, the budget is too small, or see `PressureScale`.
    """
    parts = [_parts(trace, plan) for trace in traces]
    learnt = [*training, *(part[_TRAIN] for part in parts if _TRAIN in part)]
    bench = _Bench(config, replace(setup, seed=plan.seed, engine=config.engine), learnt, plan, on_run)
    sizes = [plan.mix.workflows or len(trace.workflows) for trace in traces]  # parts alone could be too few to fill a cache
    cells = bench.cells([part[_FIT] for part in parts], sizes)
    Random(f"pbkv-tune/cells/{plan.seed}").shuffle(cells)  # the first decide most: they are not all of one trace
    trials = _search(bench, cells, _candidates(plan, config, _affordable(plan.budget, len(cells), len(plan.policies))))
    held = bench.cells([part[_HELD] for part in parts], sizes)
    full = [trial for trial in trials if len(trial.scores) == len(cells)]
    winner = max(full, key=lambda trial: trial.score)  # of equals the first: the present settings
    present = bench.trial(trials[0].values, held)
    proof = bench.trial(winner.values, held) if winner is not trials[0] else None
    names, held_names = (tuple(cell.name for cell in each) for each in (cells, held))
    return Tuning(plan.objective, names, tuple(trials), held_names, present, proof)


def _parts(trace: Trace, plan: TuningPlan) -> dict[str, Trace]:
    shares = {_FIT: 1 - plan.hold_out - plan.train, _HELD: plan.hold_out}
    if plan.train:
        shares[_TRAIN] = plan.train
    parts = split(trace, shares, f"tune/{plan.seed}")
    for name, part in parts.items():
        if not part.workflows:
            tasks = len({workflow.group for workflow in trace.workflows})
            raise InvalidArgument("TRACE", f"{trace.name} has too few tasks, {tasks}: none is left for the part {name!r}")
    return parts


def _candidates(plan: TuningPlan, config: Config, wanted: int) -> list[Values]:
    """The present settings, the other policies with what the configuration says, and settings of all of them, in turn."""
    knobs = {policy: knobs_of(policy, config.predictor.model) for policy in plan.policies}
    first = values_of(config, config.cache.policy, knobs_of(config.cache.policy, config.predictor.model))
    found = [first, *(values_of(config, policy, knobs[policy]) for policy in plan.policies if policy != config.cache.policy)]
    tunable = [policy for policy in plan.policies if knobs[policy]]
    if not tunable and len(found) == 1:
        raise InvalidArgument("policies", f"there is nothing to tune about {', '.join(plan.policies)}")
    room = wanted - len(found)
    for number, policy in enumerate(tunable):
        share = len(range(number, room, len(tunable)))  # the first get what cannot be divided
        draws = Random(f"pbkv-tune/{policy}/{plan.seed}")
        found += [{"cache.policy": policy, **values} for values in spread(knobs[policy], share, draws)]
    different = {tuple(sorted(values.items())): values for values in reversed(found)}  # of equals the first stays
    return [values for values in found if different[tuple(sorted(values.items()))] is values]


def _affordable(budget: int, cells: int, policies: int) -> int:
    """The most candidates whose halving takes no more runs than the budget allows."""
    least = policies + 1
    wanted = max((number for number in range(least, budget + 1) if _runs(number, cells) <= budget), default=0)
    if not wanted:
        raise InvalidArgument("budget", f"must be at least {_runs(least, cells)} for {cells} cells (traces x pressures)")
    return wanted


def _rungs(candidates: int, cells: int) -> Iterator[tuple[int, int]]:
    """How many candidates run in how many cells, the present settings apart."""
    alive, reach = candidates - 1, 1
    while True:
        yield alive, min(reach, cells)
        if reach >= cells:
            return
        alive, reach = max(1, alive // 2), 2 * reach


def _runs(candidates: int, cells: int) -> int:
    runs, passed = cells, 0  # the present settings run everywhere
    for alive, reach in _rungs(candidates, cells):
        runs += alive * (reach - passed)
        passed = reach
    return runs


def _search(bench: "_Bench", cells: "list[_Cell]", candidates: list[Values]) -> list[Trial]:
    present, *alive = [Trial(values, ()) for values in candidates]
    done: list[Trial] = []
    for number, reach in _rungs(len(candidates), len(cells)):
        present = bench.go_on(present, cells[:reach])
        alive.sort(key=lambda trial: -trial.score if trial.scores else 0.0)  # stable: of equals the first
        alive, dropped = alive[:number], alive[number:]
        done = dropped + done
        alive = [bench.go_on(trial, cells[:reach]) for trial in alive]
    return [present, *sorted(alive, key=lambda trial: -trial.score), *done]


class _Cell(NamedTuple):
    name: CellName
    comparison: Comparison
    lru: Row


class _Bench:
    """Runs candidates in cells."""

    def __init__(
        self,
        config: Config,
        setup: Setup,
        training: Sequence[Trace],
        plan: TuningPlan,
        on_run: Callable[[int], None],
    ) -> None:
        self._config = config
        self._setup = setup
        self._training = training
        self._plan = plan
        self._on_run = on_run
        self._runs = 0
        self._trained: dict[tuple[CacheConfig, PredictorConfig], Setup] = {}

    def cells(self, traces: Sequence[Trace], sizes: Sequence[int]) -> list[_Cell]:
        """Every workload at every pressure; pressures out of reach share the nearest.

        Args:
            traces: what is run.
            sizes: workflows in a run of each.

        Raises:
            InvalidArgument: LRU hits nothing in any.
        """
        found: dict[tuple[int, int], _Cell] = {}
        for number, (trace, size) in enumerate(zip(traces, sizes, strict=True)):
            tokens = TokenSource(make_workload([trace], replace(self._plan.mix, workflows=size), self._plan.seed))
            comparison = Comparison(tokens, self._setup, self._plan.host_ratio, lambda: self._on_run(self._runs))
            for pressure in self._plan.pressures:
                lru = comparison.row(BASELINE, pressure)
                name = CellName(trace.name, pressure, lru.pressure_measured, lru.capacity_blocks)
                if lru.hit_gpu:
                    found.setdefault((number, lru.capacity_blocks), _Cell(name, comparison, lru))
        if not found:
            raise InvalidArgument("pressure", "LRU hits nothing at any: there is nothing to compare with")
        return list(found.values())

    def trial(self, values: Values, cells: Sequence[_Cell]) -> Trial:
        """Runs a candidate in some cells."""
        return self.go_on(Trial(values, ()), cells)

    def go_on(self, trial: Trial, cells: Sequence[_Cell]) -> Trial:
        """Runs a candidate in those of the cells that it has not run in."""
        setup = self._setup_of(with_values(self._config, trial.values))
        scores = list(trial.scores)
        for cell in cells[len(scores) :]:
            self._runs += 1
            scores.append(self._score(cell, cell.comparison.row(str(trial.values["cache.policy"]), cell.name.pressure, setup)))
        return replace(trial, scores=tuple(scores))

    def _score(self, cell: _Cell, row: Row) -> float:
        if self._plan.objective is Objective.LATENCY:
            return cell.lru.latency_mean_s / row.latency_mean_s
        return row.hit_gpu / cell.lru.hit_gpu

    def _setup_of(self, config: Config) -> Setup:
        setup = replace(self._setup, cache=config.cache, predictor=config.predictor)
        if not self._training:
            return setup
        key = config.cache, config.predictor
        if key not in self._trained:
            self._trained[key] = train_state(setup, self._training)
        return self._trained[key]
