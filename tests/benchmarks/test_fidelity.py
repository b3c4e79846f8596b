"""The benchmark of fidelity runs in virtual time what a replay submits, and tells when the two differ."""

import argparse
from pathlib import Path

import pytest

from benchmarks.serving.fidelity import Outcome, arrival_of, compared, played_of, run
from pbkv_cluster.core.tokens import count
from pbkv_cluster.core.usage import HitMeter, Tier
from pbkv_cluster.simulator.workload.generator import generate
from tests.simulator.simulated import lines_of


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


def test_recorded_workflows_are_played_with_shorter_prompts(tmp_path: Path) -> None:
    recorded = list(generate(9))
    (tmp_path / "made.jsonl").write_bytes(b"".join(line + b"\n" for line in lines_of(recorded)))
    played = played_of(tmp_path / "made.jsonl", 5)
    assert played.what.startswith("5 workflows of made.jsonl")
    assert [workflow.id for workflow in played.workflows] == [workflow.id for workflow in recorded[:5]]
    for step in (step for workflow in played.workflows for step in workflow.steps):
        prompt = count(played.prompts.prompt(step))
        assert prompt == pytest.approx(step.prompt_tokens / 4, abs=len(step.prompt)), "each part is rounded"
        assert 1 <= count(played.prompts.output(step)) <= 16


def test_a_trace_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    given = argparse.Namespace(quick=True, fidelity_trace=tmp_path / "absent.jsonl")
    with pytest.raises(SystemExit, match=r"--fidelity-trace: .*absent"):
        run(given)
