"""Runs on several workers, between which the production router chooses."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from pbkv_cluster.core.errors import InvalidArgument
from pbkv_cluster.core.load_speeds import LoadSpeeds
from pbkv_cluster.core.usage import Tier
from pbkv_cluster.core.workflow.access_log import StepLog
from pbkv_cluster.gateway.routing.speeds import LoadingCost
from pbkv_cluster.reuse.model.access_model import AccessModel
from pbkv_cluster.simulator.engine.cost_model import CostModel
from pbkv_cluster.simulator.engine.engine import SimulatedEngine
from pbkv_cluster.simulator.engine.simulation import Setup, simulate
from pbkv_cluster.simulator.evaluation.experiment import Plan, compare
from pbkv_cluster.simulator.traces.step_traces import Segment, SegmentKind, TraceStep, TraceWorkflow
from pbkv_cluster.simulator.workload.prompts import PromptBuilder
from pbkv_cluster.simulator.workload.token_source import TokenSource
from pbkv_cluster.simulator.workload.workload import Arrival, Mix, Workload
from tests.simulator.simulated import BLOCK, source, trace

TIGHT = Setup(60, 30, "pbkv-paper", workers=2)


@pytest.mark.parametrize("workers", [2, 3])
@pytest.mark.parametrize("seed", range(2))
def test_many_tokens_at_a_time_are_the_same_as_one_by_one(seed: int, workers: int, monkeypatch: pytest.MonkeyPatch) -> None:
    setup = replace(TIGHT, workers=workers)
    fast = simulate(source(seed=seed), setup)
    monkeypatch.setattr(SimulatedEngine, "short_cut", False)
    slow = simulate(source(seed=seed), setup)
    assert fast.steps == slow.steps
    assert fast == slow


def test_every_step_runs_once_on_one_of_the_workers() -> None:
    tokens = source(24, concurrency=12)
    result = simulate(tokens, replace(TIGHT, policy="pbkv", workers=3))
    assert sorted((record.arrival, record.position) for record in result.steps) == [
        (number, position)
        for number, arrival in enumerate(tokens.workload.arrivals)
        for position in range(len(arrival.workflow.steps))
    ]
    assert {record.worker for record in result.steps} == {0, 1, 2}
    assert sum(result.decisions[name] for name in result.decisions if name.startswith("route_")) == len(result.steps)
    ended = [record.ended_at for record in result.steps]
    assert ended == sorted(ended), "events are handled in the order of their times"
    changes = 0
    where: dict[int, int] = {}
    for record in sorted(result.steps, key=lambda each: each.position):
        changes += where.get(record.arrival, record.worker) != record.worker
        where[record.arrival] = record.worker
    assert 0 < result.worker_changes == changes


def test_a_second_worker_that_is_never_needed_changes_nothing() -> None:
    tokens = source(12, concurrency=1)
    one, two = (simulate(tokens, Setup(60, 30, "retired-lru", workers=workers)) for workers in (1, 2))
    assert two.steps == one.steps
    assert two.worker_changes == 0


def test_steps_go_where_their_prefix_is_but_not_all_to_one_worker() -> None:
    roomy = simulate(source(24, concurrency=12), Setup(2000, workers=2))
    assert {record.worker for record in roomy.steps} == {0, 1}
    assert roomy.worker_changes < 0.5 * roomy.meter.steps
    delivered = roomy.meter.delivered[Tier.GPU]
    assert 0.7 * roomy.meter.available_tokens < delivered <= roomy.meter.available_tokens


def test_the_router_hears_how_fast_workers_load(monkeypatch: pytest.MonkeyPatch) -> None:
    heard: list[LoadSpeeds] = []
    measured = LoadingCost.measured

    def noted(cost: LoadingCost, speeds: LoadSpeeds) -> None:
        heard.append(speeds)
        measured(cost, speeds)

    monkeypatch.setattr(LoadingCost, "measured", noted)
    cost = CostModel()
    result = simulate(source(12), replace(TIGHT, cost=cost))
    assert 0 < len(heard) <= result.meter.steps
    loaded = heard[-1].loads[Tier.HOST].token_s
    assert loaded == pytest.approx(cost.copy_seconds(1) / BLOCK)
    assert heard[-1].prefill_token_s >= cost.prefill_token_s > loaded


def test_workflows_spread_by_the_memory_that_they_take() -> None:
    """Six of them begin the same way, one after the other; each worker has room for three."""
    system = Segment(SegmentKind.SYSTEM, "system", 4 * BLOCK)
    workflows = [
        TraceWorkflow(f"w{number}", "hand-made", (TraceStep("agent", (system, own), f"out-{number}", 1),) * 6)
        for number, own in ((number, Segment(SegmentKind.TASK, f"task-{number}", 30 * BLOCK)) for number in range(6))
    ]
    starts = [Arrival(each.id, each, (30.0,) * 6, starts_at=2.0 * number) for number, each in enumerate(workflows)]
    result = simulate(TokenSource(Workload("given", tuple(starts), 0), PromptBuilder()), Setup(110, 0, "lru", workers=2))
    assert Counter(record.worker for record in result.steps if record.position == 0) == {0: 3, 1: 3}
    assert result.worker_changes == 0
    assert result.recomputed_tokens == 4 * BLOCK, "the second worker computes what all have in common, too"


def test_two_workers_are_faster_than_one() -> None:
    tokens = source(24, concurrency=12, think_scale=0)
    one, two = (simulate(tokens, Setup(400, workers=workers)) for workers in (1, 2))
    assert two.seconds < one.seconds
    assert two.latency is not None
    assert one.latency is not None
    assert two.latency.mean < one.latency.mean


def test_each_ended_workflow_is_learnt_from_once_and_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    learnt: list[list[int]] = []
    learn = AccessModel.learn

    def noted(model: AccessModel, steps: Sequence[StepLog]) -> Any:
        learnt.append([step.number for step in steps])
        return learn(model, steps)

    monkeypatch.setattr(AccessModel, "learn", noted)
    tokens = source(24, concurrency=12)
    result = simulate(tokens, replace(TIGHT, policy="pbkv", workers=3))
    assert result.worker_changes > 0
    lengths = sorted(len(arrival.workflow.steps) for arrival in tokens.workload.arrivals)
    assert sorted(map(len, learnt)) == lengths
    assert all(numbers == list(range(len(numbers))) for numbers in learnt)


def test_rows_of_several_workers_have_a_bound_of_all_their_memory() -> None:
    plan = Plan(("lru", "oracle"), (0.8,), host_ratio=0.3, mix=Mix(concurrency=6, think_scale=0.02))
    lru, oracle = compare([trace(24)], plan, Setup(0, workers=2))
    assert oracle.bound_tokens is not None
    assert oracle.bound_tokens <= oracle.recomputed_tokens < lru.recomputed_tokens


def test_a_cluster_without_workers_is_refused() -> None:
    with pytest.raises(InvalidArgument, match="workers"):
        simulate(source(2), Setup(60, workers=0))
