"""`pbkv predictor eval`: predictable figures, training and test sets, bad input."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.cli.agent_traces import write_trace
from tests.cli.conftest import Pbkv


@pytest.fixture
def trace(tmp_path: Path) -> str:
    return str(write_trace(tmp_path / "app.jsonl.gz", workflows=12))


def rows(out: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(out)
    return found


def test_each_expert_and_the_mixture_by_moment_and_step(pbkv: Pbkv, trace: str) -> None:
    experts = ("--expert", "markov", "--expert", "context-tree")
    done = pbkv("predictor", "eval", "--train", trace, "--test", trace, *experts, "--json", "-")
    assert done.code == 0, done.err
    found = rows(done.out)
    assert [(row["workload"], row["expert"], row["when"], row["k"]) for row in found] == [
        ("app", expert, when, k)
        for expert in ("markov", "context-tree", "mixture")
        for when in ("before", "after")
        for k in (1, 2, 3)
    ]
    assert all(row["top1"] == row["top3"] == 1.0 and row["forecasts"] == 36 for row in found)
    assert all(row["forecasts_per_s"] > 0 and 0 <= row["calibration_error"] < 0.5 and row["log_loss"] > 0 for row in found)
    assert "12 workflows forecast, after 12 workflows, without learning on." in done.err


def test_without_training_it_keeps_learning(pbkv: Pbkv, trace: str, tmp_path: Path) -> None:
    target = tmp_path / "rows.json"
    done = pbkv("predictor", "eval", "--test", trace, "--json", str(target), "--no-text", "--expert", "context-tree")
    assert done.code == 0, done.err
    assert "12 workflows forecast, from nothing, learning on, from agents alone." in done.out
    assert "context-tree" in done.out
    assert "mixture" not in done.out, "one expert makes no mixture"
    first = rows(target.read_text())[0]
    assert 0.5 < first["top1"] < 1.0


def test_a_split_by_task_learns_from_one_part(pbkv: Pbkv, trace: str) -> None:
    done = pbkv("predictor", "eval", "--test", trace, "--split", "0.5", "--set", "predictor.horizon=2", "--json", "-")
    assert done.code == 0, done.err
    found = rows(done.out)
    assert {row["k"] for row in found} == {1, 2}
    assert 0 < found[0]["forecasts"] < 36
    assert found[0]["top1"] == 1.0


def test_experts_that_say_nothing_are_left_out(pbkv: Pbkv, trace: str) -> None:
    experts = ("--expert", "markov", "--expert", "step-graph")
    done = pbkv("predictor", "eval", "--train", trace, "--test", trace, *experts, "--json", "-")
    assert done.code == 0, done.err
    assert {row["expert"] for row in rows(done.out)} == {"markov", "mixture"}, "the trace declares no step graph"
    assert "Left out, because it made no forecast: step-graph." in done.err


def test_several_workloads_have_a_mean(pbkv: Pbkv, trace: str, tmp_path: Path) -> None:
    other = tmp_path / "other.jsonl"
    line = {
        "workflow_id": "x",
        "workload": "other",
        "step": 0,
        "agent": "lone",
        "prompt_segments": [{"kind": "task", "id": "t", "tokens": 9}],
        "prompt_tokens": 9,
        "output_tokens": 1,
        "output_id": "o",
    }
    other.write_text(json.dumps(line))
    done = pbkv("predictor", "eval", "--test", trace, "--test", str(other), "--train", trace)
    assert done.code == 0, done.err
    assert "mean of 2 workloads" in done.out


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        (("--split", "1"), "--split: must be above 0 and below 1, got 1"),
        (("--split", "0.5", "--train", "TRACE"), "--split: takes training from --test"),
        (("--split", "0.0001"), "--split: leaves one part without any task"),
        (("--expert", "oracle-of-delphi"), "oracle-of-delphi"),
        (("--train", "missing.jsonl"), "missing.jsonl"),
        (("--json", "no/such/folder.json"), "--json: cannot write"),
    ],
)
def test_bad_input_is_named(pbkv: Pbkv, trace: str, options: tuple[str, ...], problem: str) -> None:
    done = pbkv("predictor", "eval", "--test", trace, *(trace if option == "TRACE" else option for option in options))
    assert done.code == 2
    assert problem in done.err
