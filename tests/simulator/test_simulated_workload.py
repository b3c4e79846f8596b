"""How workloads are drawn from traces."""

import math
import statistics
from collections import defaultdict
from dataclasses import replace

import pytest

from pbkv_cluster.core.errors import InvalidArgument
from pbkv_cluster.simulator.traces.files import Trace
from pbkv_cluster.simulator.traces.step_traces import TraceWorkflow
from pbkv_cluster.simulator.workload.workload import Mix, Workload, make_workload
from tests.simulator.simulated import trace


def ids(workload: Workload) -> list[set[str]]:
    """For each arrival, the ids of its texts."""
    return [
        {name for step in arrival.workflow.steps for name in (step.output_id, *(segment.id for segment in step.prompt))}
        for arrival in workload.arrivals
    ]


def test_the_seed_decides_order_and_pauses() -> None:
    traces = [trace(10)]
    assert make_workload(traces, Mix(think_scale=1.0), 1) == make_workload(traces, Mix(think_scale=1.0), 1)
    first, second = (make_workload(traces, Mix(think_scale=1.0), seed) for seed in (1, 2))
    assert [arrival.workflow.id for arrival in first.arrivals] != [arrival.workflow.id for arrival in second.arrivals]
    assert {arrival.workflow.id for arrival in first.arrivals} == {arrival.workflow.id for arrival in second.arrivals}


def test_copies_share_only_what_workflows_shared_before() -> None:
    own = trace(6)
    once = ids(make_workload([own], Mix(), 0))
    common = {name for names in once for name in names if sum(name in other for other in once) > 1}
    twice = ids(make_workload([own], Mix(workflows=18), 0))
    assert len({arrival.id for arrival in make_workload([own], Mix(workflows=18), 0).arrivals}) == 18
    for number, names in enumerate(twice):
        for other in twice[:number]:
            assert names & other <= common
    assert common <= set().union(*twice[6:12])


def test_a_pause_is_the_logged_one_and_more() -> None:
    workload = make_workload([trace(60, max_steps=20)], Mix(think_scale=3.0), 0)
    added = [
        pause - step.pause_s
        for arrival in workload.arrivals
        for pause, step in zip(arrival.pauses, arrival.workflow.steps, strict=True)
    ]
    assert min(added) > 0
    assert statistics.median(added) == pytest.approx(3.0 * 2.0, rel=0.2)
    plain = make_workload([trace(5)], Mix(think_scale=0.0), 0)
    assert all(
        pause == step.pause_s
        for arrival in plain.arrivals
        for pause, step in zip(arrival.pauses, arrival.workflow.steps, strict=True)
    )


def test_pauses_are_added_by_themselves_only_where_no_trace_logs_any() -> None:
    logged = trace(5)
    silent = Trace("silent", tuple(_without_pauses(workflow) for workflow in logged.workflows))
    single = Trace("single", tuple(replace(workflow, steps=workflow.steps[:1]) for workflow in silent.workflows))
    assert make_workload([logged], Mix(), 0) == make_workload([logged], Mix(think_scale=0.0), 0)
    assert make_workload([silent], Mix(), 0) == make_workload([silent], Mix(think_scale=1.0), 0)
    assert make_workload([silent, logged], Mix(), 0) == make_workload([silent, logged], Mix(think_scale=0.0), 0)
    assert make_workload([single], Mix(), 0) == make_workload([single], Mix(think_scale=0.0), 0)


def _without_pauses(workflow: TraceWorkflow) -> TraceWorkflow:
    return replace(workflow, steps=tuple(replace(step, pause_s=0.0) for step in workflow.steps))


def test_a_drifting_mix_changes_half_way() -> None:
    workload = make_workload([trace(10, 1), trace(10, 2)], Mix(workflows=200, drift=True), 0)
    from_first = ["-1-" in arrival.workflow.id for arrival in workload.arrivals]
    assert sum(from_first[:100]) > 65 > 35 > sum(from_first[100:])


def test_arrival_times_make_an_open_loop() -> None:
    workload = make_workload([trace(4)], Mix(), 0, starts=[0.0, 0.5, 7.0])
    assert [arrival.starts_at for arrival in workload.arrivals] == [0.0, 0.5, 7.0]
    assert workload.concurrency == 0
    own = Trace("timed", trace(2).workflows, (1.0, 2.0))
    assert [arrival.starts_at for arrival in make_workload([own], Mix(), 0).arrivals] == [1.0, 2.0]


def test_tool_calls_are_announced_after_each_step_but_the_last_where_that_is_asked_for() -> None:
    for arrival in make_workload([trace(20)], Mix(announce_sigma=0.0), 0).arrivals:
        assert [call.tool for call in arrival.tool_calls] == [step.tool or "tool" for step in arrival.workflow.steps[:-1]]
    assert not any(arrival.tool_calls for arrival in make_workload([trace(20)], Mix(), 0).arrivals)


def test_announced_pauses_are_off_by_the_error_that_was_asked_for() -> None:
    def errors(sigma: float) -> list[float]:
        arrivals = make_workload([trace(60, max_steps=20)], Mix(think_scale=1.0, announce_sigma=sigma), 0).arrivals
        pairs = [pair for arrival in arrivals for pair in zip(arrival.tool_calls, arrival.pauses, strict=False)]
        return [math.log((call.expected_s or 0.0) / pause) for call, pause in pairs]

    assert errors(0.0) == pytest.approx([0.0] * len(errors(0.0)))
    assert statistics.stdev(errors(0.5)) == pytest.approx(0.5, rel=0.15)
    plain, announced = (
        make_workload([trace(20)], mix, 0).arrivals for mix in (Mix(think_scale=1.0), Mix(think_scale=1.0, announce_sigma=0.5))
    )
    assert [arrival.pauses for arrival in plain] == [arrival.pauses for arrival in announced]


def test_a_tool_determines_the_share_of_a_pause_that_was_asked_for() -> None:
    def drawn(share: float) -> dict[str, list[float]]:
        found = defaultdict[str, list[float]](list)
        for arrival in make_workload([trace(60, max_steps=20)], Mix(think_scale=1.0, tool_share=share), 0).arrivals:
            for step, pause in zip(arrival.workflow.steps, arrival.pauses, strict=True):
                if step.tool:
                    found[f"{arrival.workflow.workload}/{step.tool}"].append(math.log(pause - step.pause_s))
        return found

    assert all(max(pauses) == pytest.approx(min(pauses), abs=1e-6) for pauses in drawn(1.0).values())
    half = drawn(0.5).values()
    within = sum(statistics.pvariance(pauses) * len(pauses) for pauses in half) / sum(map(len, half))
    assert within == pytest.approx(0.5, rel=0.25)


WRONG = [
    *({"workflows": 0}, {"concurrency": 0}, {"think_scale": -1.0}, {"think_scale": float("nan")}),
    *({"announce_sigma": -1.0}, {"tool_share": 1.5}),
]


@pytest.mark.parametrize("wrong", WRONG)
def test_values_out_of_range_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(InvalidArgument, match=next(iter(wrong))):
        Mix(**wrong)  # type: ignore[arg-type]


def test_too_few_arrival_times_are_refused() -> None:
    with pytest.raises(InvalidArgument, match="starts"):
        make_workload([trace(4)], Mix(workflows=3), 0, starts=[0.0])
    with pytest.raises(InvalidArgument, match="traces"):
        make_workload([], Mix(), 0)


def test_a_share_of_added_pauses_is_refused_where_none_are_added() -> None:
    with pytest.raises(InvalidArgument, match="tool_share"):
        make_workload([trace(4)], Mix(tool_share=0.5), 0)
