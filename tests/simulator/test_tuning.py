"""The search for settings finds those that matter, and rejects those that suit only the tasks that were searched on."""

import random
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pbkv_cluster.cache.policies import POLICIES
from pbkv_cluster.core.config import Config, EngineConfig
from pbkv_cluster.core.config.sources import fields
from pbkv_cluster.core.errors import InvalidArgument
from pbkv_cluster.simulator.engine.simulation import Setup
from pbkv_cluster.simulator.traces.files import Trace
from pbkv_cluster.simulator.traces.split import part_of
from pbkv_cluster.simulator.traces.step_traces import Segment, SegmentKind, TraceStep, TraceWorkflow
from pbkv_cluster.simulator.tuning.bench import Bench
from pbkv_cluster.simulator.tuning.knobs import Choice, all_knobs, knobs_of, spread, values_of, with_values
from pbkv_cluster.simulator.tuning.objective import Objective
from pbkv_cluster.simulator.tuning.plan import TuningPlan
from pbkv_cluster.simulator.tuning.tuning import tune
from pbkv_cluster.simulator.workload.workload import Mix
from tests.simulator.simulated import trace as generated

# Forgets at once, so that it is LRU. The guard would switch to LRU and hide the effect of settings.
SETUP = Setup(0, engine=EngineConfig(order="arrival"))
FORGETFUL = Config.model_validate(
    {"cache": {"policy": "lfu", "lfu_half_life_s": 0.5, "guard": False}, "engine": {"order": "arrival"}}
)


def popular(name: str, draws: random.Random, shape: float, templates: int) -> TraceWorkflow:
    """One step with one of some templates. Few of them are used often, so counting uses pays."""
    template = min(int(draws.paretovariate(shape)), templates)
    prompt = Segment(SegmentKind.SYSTEM, f"template-{template}", 128), Segment(SegmentKind.TASK, f"{name}/task", 256)
    return TraceWorkflow(name, "made", (TraceStep("agent", prompt, f"{name}/output", 16),))


def burst(name: str) -> TraceWorkflow:
    """Some steps with a prefix that no later workflow uses, but that a policy that counts uses would keep."""
    own = Segment(SegmentKind.TASK, f"{name}/task", 128)
    steps = (
        TraceStep("agent", (own, Segment(SegmentKind.TOOL, f"{name}/{at}", 32)), f"{name}/{at}/out", 16) for at in range(4)
    )
    return TraceWorkflow(name, "made", tuple(steps))


def plan(policies: tuple[str, ...] = ("lfu",), **changes: Any) -> TuningPlan:
    usual = {"pressures": (0.5,), "budget": 5, "host_ratio": 0.0, "mix": Mix(concurrency=4, think_scale=1.0)}
    return TuningPlan(policies, **{**usual, **changes})


def test_a_setting_that_matters_is_found() -> None:
    draws = random.Random(1)
    trace = Trace("made", tuple(popular(f"w{number}", draws, 1.0, 16) for number in range(160)))
    runs: list[int] = []
    found = tune([trace], plan(), FORGETFUL, SETUP, on_run=runs.append)
    assert found.accepted
    half_life = found.chosen["cache.lfu_half_life_s"]
    assert isinstance(half_life, float)
    assert half_life > 20
    assert found.held_out_winner is not None
    assert found.held_out_winner.score > found.held_out_present.score
    assert found.trials[0].values == {"cache.policy": "lfu", "cache.lfu_half_life_s": 0.5}
    assert sum(len(trial.scores) for trial in found.trials) == 5
    assert max(runs) == 7, "two more are on held-out tasks"
    assert found == tune([trace], plan(), FORGETFUL, SETUP)


def test_a_winner_that_loses_on_held_out_tasks_is_rejected() -> None:
    draws = random.Random(2)
    names = [f"w{number}" for number in range(160)]
    shares = {"fit": 0.7, "held out": 0.3}
    kinds = [part_of(name, shares, "tune/0") == "fit" for name in names]
    workflows = [popular(name, draws, 0.7, 30) if fit else burst(name) for name, fit in zip(names, kinds, strict=True)]
    found = tune([Trace("made", tuple(workflows))], plan(), FORGETFUL, SETUP)
    assert found.held_out_winner is not None, "it was better on the tasks searched on"
    assert found.held_out_winner.score < found.held_out_present.score
    assert not found.accepted
    assert found.chosen == found.trials[0].values


def test_policies_and_cells_share_a_budget() -> None:
    traces = [generated(14, seed) for seed in (1, 2)]
    wanted = plan(("retired-lru", "continuum", "pbkv-paper"), pressures=(0.7, 0.8), budget=20, train=0.2)
    found = tune(traces, wanted, with_values(Config(), {"cache.policy": "pbkv-paper"}), SETUP)
    assert len(found.cells) == 4
    assert {cell.workload for cell in found.cells} == {"made-1", "made-2"}
    assert 17 <= sum(len(trial.scores) for trial in found.trials) <= 20
    policies = [str(trial.values["cache.policy"]) for trial in found.trials]
    assert sorted(policies) == ["continuum"] * 4 + ["pbkv-paper"] * 4 + ["retired-lru"], (
        "as they are, and three of each tunable"
    )
    assert found.trials[0].values["cache.policy"] == "pbkv-paper"
    assert len(found.trials[0].scores) == len(found.trials[1].scores) == 4
    assert {trial.values["cache.policy"] for trial in found.trials} == set(wanted.policies)
    reach = [len(trial.scores) for trial in found.trials]
    assert reach == sorted(reach, reverse=True)


def test_with_a_host_tier_the_fewer_tokens_are_recomputed_the_better() -> None:
    draws = random.Random(3)
    trace = Trace("made", tuple(popular(f"w{number}", draws, 1.0, 16) for number in range(80)))
    wanted = plan(host_ratio=1.0, pressures=(0.3,))
    bench = Bench(FORGETFUL, SETUP, (), wanted, lambda runs: None)
    [cell] = bench.cells([(trace, replace(wanted.mix, workflows=80))])
    rows = []
    for half_life in (0.5, 5.0, 50.0):
        values: dict[str, float | int | str] = {"cache.policy": "lfu", "cache.lfu_half_life_s": half_life}
        setup = replace(SETUP, cache=with_values(FORGETFUL, values).cache)
        row = cell.comparison.row("lfu", 0.3, setup)
        rows.append((row.recomputed_tokens, row.hit_gpu, bench.trial(values, [cell]).score))
    recomputed, gpu, scores = zip(*rows, strict=True)
    assert len(set(recomputed)) == len(set(scores)) == 3
    assert len(set(gpu)) < 3, "the GPU's hits do not tell them apart"
    assert sorted(scores, reverse=True) == [score for _, score in sorted(zip(recomputed, scores, strict=True))]


def test_latency_can_be_the_objective() -> None:
    found = tune([generated(16)], plan(("continuum",), objective=Objective.LATENCY, pressures=(0.8,)), Config(), SETUP)
    assert all(0.2 < score < 5 for trial in found.trials for score in trial.scores)


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"policies": ()}, "policies"),
        ({"policies": ("lfu", "lfu")}, "policies"),
        ({"policies": ("oracle",)}, "policies: oracle"),
        ({"pressures": (1.0,)}, "pressure"),
        ({"pressures": ()}, "pressure"),
        ({"hold_out": 0.0}, "hold_out"),
        ({"hold_out": float("nan")}, "hold_out"),
        ({"train": 0.7}, "train"),
        ({"host_ratio": float("inf")}, "host_ratio"),
    ],
)
def test_a_wrong_plan_is_refused(changes: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidArgument, match=field):
        TuningPlan(**{"policies": ("lfu",), "pressures": (0.5,), **changes})


@pytest.mark.parametrize(
    ("wanted", "workflows", "named"),
    [
        (plan(budget=1), 16, "budget: must be at least 2"),
        (plan(("lru",)), 16, "policies: there is nothing to tune about lru"),
        (plan(), 1, "TRACE: made-0 has too few tasks, 1"),
    ],
)
def test_what_cannot_be_tuned_is_refused(wanted: TuningPlan, workflows: int, named: str) -> None:
    config = with_values(Config(), {"cache.policy": wanted.policies[0]})
    with pytest.raises(InvalidArgument, match=named):
        tune([generated(workflows)], wanted, config, SETUP)


@given(st.integers(1, 12), st.randoms(use_true_random=False))
def test_candidates_are_spread_and_valid(count: int, draws: random.Random) -> None:
    knobs = knobs_of("pbkv-paper", "markov")
    found = list(spread(knobs, count, draws))
    for knob in knobs:
        values = sorted(float(each[knob.field]) for each in found)
        expected = sorted(float(knob.at((number + 0.5) / count)) for number in range(count))
        assert values == expected
    for values_ in found:
        assert values_of(with_values(Config(), values_), "pbkv-paper", knobs) == {"cache.policy": "pbkv-paper", **values_}


def test_every_knob_is_a_setting_within_its_range() -> None:
    known = {path for path, _ in fields()}
    for knob in all_knobs():
        assert knob.field in known
        for position in (0.0, 0.5, 1.0):
            with_values(Config(), {knob.field: knob.at(position)})
    for policy in POLICIES.names():
        knobs_of(policy, "markov")
    assert knobs_of("elsewhere:Policy", "elsewhere:Predictor") == ()


def test_a_choice_has_each_value_equally_often() -> None:
    knob = Choice("cache.host_policy", ("a", "b", "c"))
    assert [knob.at(position) for position in (0.0, 0.34, 0.67, 1.0)] == ["a", "b", "c", "c"]
