"""The benchmark of the predictor, on made-up workflows: figures that are known beforehand, and the choice of parts."""

import argparse
import gzip
import json
from pathlib import Path

import pytest

from benchmarks.policies import benchmark as policies
from benchmarks.policies.job import job_of
from benchmarks.predictor import benchmark as predictor
from benchmarks.predictor.accuracy import ablation, accuracy, drift, read
from benchmarks.predictor.load import copies
from benchmarks.report import Report
from pbkv_cluster.core.workflow.events import EventKind


def write(path: Path, agents: str, workflows: int = 60) -> Path:
    """Workflows with the same agents, one step per letter, each of a task of its own."""
    lines = [
        {
            "workflow_id": f"w{workflow}",
            "workload": path.name.split(".")[0],
            "step": step,
            "agent": agent,
            "prompt_segments": [{"kind": "task", "id": f"{workflow}-{step}", "tokens": 40}],
            "prompt_tokens": 40,
            "output_tokens": 20,
            "output_id": f"o{workflow}-{step}",
            "words": [step],
        }
        for workflow in range(workflows)
        for step, agent in enumerate(agents)
    ]
    path.write_bytes(gzip.compress("\n".join(map(json.dumps, lines)).encode()))
    return path


def figures(report: Report, start: str) -> list[float]:
    return [figure.value for figure in report.figures if figure.name.startswith(start)]


def arguments(*given: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("--quick", action="store_true")
    policies.add_options(parser)
    predictor.add_options(parser)
    return parser.parse_args(given)


def test_a_fixed_order_is_forecast_and_learnt_anew_after_a_change(tmp_path: Path) -> None:
    recorded = [read(write(tmp_path / f"{name}.jsonl.gz", agents), None) for name, agents in (("one", "abac"), ("two", "xyz"))]
    assert all(20 < len(each.train) < 50 and 10 < len(each.test) < 40 for each in recorded)
    names = {each.workload: {events[0].workflow for events in (*each.train, *each.test)} for each in recorded}
    assert all(len(found) == 60 for found in names.values()), "ids are not used twice"

    found = accuracy(recorded)
    for what in ("from agents alone", "before the output", "after the output"):
        assert figures(found, what) == [1.0, 1.0, 1.0]
    assert figures(found, "markov alone")[0] < 1.0, "b and c follow a"
    assert not figures(found, "lost"), "of workloads this short nothing is said about a start from nothing"
    assert {detail.name.split(",")[0] for detail in found.details} == {"one", "two"}

    changed = drift(recorded)
    assert figures(changed, "lost 20 workflows after all agents were renamed") == [0.0, 0.0, 0.0]
    assert figures(changed, "lost 20 workflows after another workload took over") == [0.0, 0.0, 0.0]
    assert all(figure.met for figure in changed.figures)
    assert figures(ablation(recorded), "without words, after the output") == [1.0, 1.0, 1.0]


def test_copies_of_a_workflow_never_end(tmp_path: Path) -> None:
    recorded = read(write(tmp_path / "one.jsonl.gz", "ab"), None)
    stream = copies(recorded.test, 3)
    events = [next(stream) for _ in range(12)]
    assert [event.sequence for event in events] == list(range(12))
    assert {event.workflow for event in events} == {"open-3"}
    assert [event.kind for event in events[1:]].count(EventKind.STEP_STARTED) == 6
    assert [event.agent for event in events if event.kind is EventKind.STEP_STARTED] == ["a", "b"] * 3


def test_only_the_parts_asked_for_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path / "one.jsonl.gz", "ab")
    options = ("--quick", "--traces", str(tmp_path), "--workloads", "one")
    assert [report.benchmark for report in predictor.run(arguments(*options, "--parts", "accuracy,memory"))] == [
        "predictor: accuracy",
        "predictor: memory",
    ]
    for wrong in (("--parts", "colour"), ("--workloads", "two")):
        with pytest.raises(SystemExit) as caught:
            list(predictor.run(arguments(*options, *wrong)))
        assert wrong[0] in str(caught.value)


@pytest.mark.slow
def test_events_reach_a_cache_and_forecasts_come_in_batches(tmp_path: Path) -> None:
    write(tmp_path / "one.jsonl.gz", "abcabc")
    options = ("--quick", "--traces", str(tmp_path), "--workloads", "one", "--parts", "speed,latency")
    speed, latency = predictor.run(arguments(*options))
    assert all(figure.value > 0 for report in (speed, latency) for figure in report.figures)
    assert [figure.at_most for figure in latency.figures] == [None, None, 5, None]


def test_policies_under_another_predictor_have_rows_of_their_own(tmp_path: Path) -> None:
    def job(*given: str) -> str:
        options = arguments("--quick", "--traces", str(tmp_path), "--workloads", "one", *given)
        return str(job_of(options).disturbances[0])

    write(tmp_path / "one.jsonl.gz", "ab")
    assert job() == ""
    assert job("--predictor", "markov", "--noise", "0.5") == "noise 0.5, predictor markov"
    options = arguments("--traces", str(tmp_path), "--workloads", "one", "--predictor", "markov")
    assert job_of(options).predictor.model == "markov"
    with pytest.raises(ValueError, match=r"--predictor: .*nobody"):
        job("--predictor", "nobody")
