"""Searches settings of policy and predictor on recorded workflows, and tests the winner on held-out tasks.

Candidates run in cells, each a trace at a pressure, by successive halving (`halving`). The present settings are one of the
candidates and run in every cell. Only the winner runs on the held-out tasks, so its result there is not the best of many.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from random import Random

from pbkv_cluster.core.config import Config
from pbkv_cluster.core.errors import InvalidArgument
from pbkv_cluster.simulator.engine.simulation import Setup
from pbkv_cluster.simulator.traces.files import Trace
from pbkv_cluster.simulator.traces.split import split
from pbkv_cluster.simulator.tuning.bench import Bench
from pbkv_cluster.simulator.tuning.halving import candidates_max, search
from pbkv_cluster.simulator.tuning.knobs import Values, knobs_of, spread, values_of
from pbkv_cluster.simulator.tuning.plan import TuningPlan
from pbkv_cluster.simulator.tuning.result import Tuning
from pbkv_cluster.simulator.workload.workload import Mix, assumed_think_scale

_TRAIN, _FIT, _HELD_OUT = "train", "fit", "held out"


def tune(
    traces: Sequence[Trace],
    plan: TuningPlan,
    config: Config,
    setup: Setup,
    training: Sequence[Trace] = (),
    on_run: Callable[[int], None] = lambda runs: None,
) -> Tuning:
    """Searches settings, and tests the winner on held-out tasks.

    Args:
        traces: the user's workflows; each trace is a workload of its own.
        plan: what to search.
        config: the present settings.
        setup: the cost model; its cache, engine and predictor settings are ignored for those of `config`.
        training: workflows to train on before every run, in addition to the plan's share of `traces`.
        on_run: called after each run with the number of runs of candidates so far.

    Raises:
        InvalidArgument: a trace has too few tasks, nothing can be tuned, the budget is too small, or see `PressureScale`.
    """
    parts = [_parts(trace, plan) for trace in traces]
    trained_on = [*training, *(part[_TRAIN] for part in parts if _TRAIN in part)]
    bench = Bench(config, replace(setup, seed=plan.seed, engine=config.engine), trained_on, plan, on_run)
    mixes = [_mix(trace, plan.mix) for trace in traces]
    cells = bench.cells((part[_FIT], mix) for part, mix in zip(parts, mixes, strict=True))
    Random(f"pbkv-tune/cells/{plan.seed}").shuffle(cells)  # the first cells decide most, and must not be all of one trace
    candidates = _candidates(plan, config, candidates_max(plan.budget, len(cells), len(plan.policies)))
    trials = search(candidates, cells, bench.extend)
    held_out = bench.cells((part[_HELD_OUT], mix) for part, mix in zip(parts, mixes, strict=True))
    full = [trial for trial in trials if len(trial.scores) == len(cells)]
    winner = max(full, key=lambda trial: trial.score)  # of equals the first: the present settings
    present = bench.trial(trials[0].values, held_out)
    tested = bench.trial(winner.values, held_out) if winner is not trials[0] else None
    names, held_out_names = (tuple(cell.name for cell in each) for each in (cells, held_out))
    return Tuning(plan.objective, names, tuple(trials), held_out_names, present, tested)


def _mix(trace: Trace, mix: Mix) -> Mix:
    """How to make workloads of the parts of a trace: of as many workflows as the whole has, since a part alone may be too small
    to fill a cache, and with pauses as they would be added to the whole.
    """
    think_scale = assumed_think_scale([trace]) if mix.think_scale is None else mix.think_scale
    return replace(mix, workflows=mix.workflows or len(trace.workflows), think_scale=think_scale)


def _parts(trace: Trace, plan: TuningPlan) -> dict[str, Trace]:
    shares = {_FIT: 1 - plan.hold_out - plan.train, _HELD_OUT: plan.hold_out}
    if plan.train:
        shares[_TRAIN] = plan.train
    parts = split(trace, shares, f"tune/{plan.seed}")
    for name, part in parts.items():
        if not part.workflows:
            tasks = len({workflow.group for workflow in trace.workflows})
            raise InvalidArgument("TRACE", f"{trace.name} has too few tasks, {tasks}: none is left for the part {name!r}")
    return parts


def _candidates(plan: TuningPlan, config: Config, wanted: int) -> list[Values]:
    """The present settings, the other policies with the present settings, and new settings of all policies in turn."""
    knobs = {policy: knobs_of(policy, config.predictor.model) for policy in plan.policies}
    first = values_of(config, config.cache.policy, knobs_of(config.cache.policy, config.predictor.model))
    found = [first, *(values_of(config, policy, knobs[policy]) for policy in plan.policies if policy != config.cache.policy)]
    tunable = [policy for policy in plan.policies if knobs[policy]]
    if not tunable and len(found) == 1:
        raise InvalidArgument("policies", f"there is nothing to tune about {', '.join(plan.policies)}")
    room = wanted - len(found)
    for number, policy in enumerate(tunable):
        share = len(range(number, room, len(tunable)))  # the first policies get what is left over
        draws = Random(f"pbkv-tune/{policy}/{plan.seed}")
        found += [{"cache.policy": policy, **values} for values in spread(knobs[policy], share, draws)]
    different = {tuple(sorted(values.items())): values for values in reversed(found)}  # of equals the first stays
    return [values for values in found if different[tuple(sorted(values.items()))] is values]
