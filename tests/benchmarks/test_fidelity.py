"""The benchmark of fidelity runs in virtual time what a replay submits, and tells when the two differ."""

import pytest

from benchmarks.serving.fidelity import Outcome, arrival_of, compared
from pbkv_cluster.core.usage import HitMeter, Tier
from pbkv_cluster.simulator.workload.generator import generate


def outcome(gpu: int, host: int, seconds: float = 1.0) -> Outcome:
    meter = HitMeter(prompt_tokens=1000, available_tokens=900, delivered={Tier.GPU: gpu, Tier.HOST: host})
    return Outcome(meter, seconds, 10 * seconds)


def test_a_workflow_has_the_pauses_and_tool_calls_of_its_replay() -> None:
    workflow = next(each for each in generate(20) if any(step.tool for step in each.steps[:-1]))
    found = arrival_of(workflow, 0.05)
    assert len(found.tool_calls) == len(workflow.steps) - 1
    for step, call, pause in zip(workflow.steps, found.tool_calls, found.pauses, strict=False):
        assert call.tool == step.tool or not step.tool
        assert call.expected_s is None, "a replay announces no durations"
        assert pause == pytest.approx(0.05 * step.pause_s)


def test_tiers_may_differ_by_two_points_each() -> None:
    figures = compared("lru", outcome(500, 100, 2.0), outcome(485, 130))
    assert [figure.value for figure in figures] == pytest.approx([1.5, 3.0, 1.5, 0.5, 0.5])
    assert [figure.met for figure in figures] == [True, False, True, None, None]
