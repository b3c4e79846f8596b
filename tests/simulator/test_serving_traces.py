"""Traces of serving systems: how their blocks become segments, and which lines are refused."""

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from pbkv_cluster.simulator.traces.files import load_trace, read_trace
from pbkv_cluster.simulator.traces.serving_traces import read_arrivals, read_requests, read_sessions
from pbkv_cluster.simulator.traces.step_traces import TraceError
from pbkv_cluster.simulator.workload.prompts import PromptBuilder

SESSION: dict[str, Any] = {
    "id": "s1",
    "block_size": 64,
    "requests": [
        {"in": 640, "out": 5, "think_time": 0.0, "stop": "tool_use", "hash_ranges": [[1, 10]]},
        {"in": 830, "out": 7, "think_time": 2.5, "stop": "end_turn", "hash_ranges": [[1, 8], [20, 23]]},
        {"subagent_type": "Explore", "requests": [{"in": 600, "out": 1, "hash_ranges": [[1, 8], [20, 20]]}]},
    ],
}
REQUEST: dict[str, Any] = {"timestamp": 1500, "input_length": 1000, "output_length": 9, "hash_ids": [4, 7]}


def write(path: Path, *lines: Any) -> Path:
    text = "".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines)
    if path.suffix == ".gz":
        with gzip.open(path, "wt") as file:
            file.write(text)
    else:
        path.write_text(text)
    return path


def test_sessions_keep_prefixes_agents_and_pauses(tmp_path: Path) -> None:
    (workflow,) = read_sessions(write(tmp_path / "sessions.jsonl.gz", SESSION))
    assert [step.agent for step in workflow.steps] == ["main", "main", "Explore"]
    assert [step.pause_s for step in workflow.steps] == [2.5, 0.0, 0.0]
    assert [step.tool for step in workflow.steps] == ["tool_use", "user", ""]
    assert [step.prompt_tokens for step in workflow.steps] == [640, 830, 600]
    first, second, third = (PromptBuilder().prompt(step) for step in workflow.steps)
    assert _common(first, second) == 8 * 64
    assert _common(second, third) == 9 * 64


def _common(one: bytes, other: bytes) -> int:
    """Number of tokens of the common prefix of two prompts."""
    return next((at for at in range(0, len(one), 4) if one[at : at + 4] != other[at : at + 4]), len(one)) // 4


def test_requests_are_workflows_of_one_step_that_arrive_on_time(tmp_path: Path) -> None:
    later = {**REQUEST, "timestamp": 2500, "hash_ids": [4, 8]}
    path = write(tmp_path / "chat.jsonl", REQUEST, later)
    one, two = read_requests(path)
    assert (one.starts_at, two.starts_at) == (1.5, 2.5)
    prompts = [PromptBuilder().prompt(timed.workflow.steps[0]) for timed in (one, two)]
    assert [len(prompt) // 4 for prompt in prompts] == [1000, 1000]
    assert _common(*prompts) == 512
    assert load_trace(path).starts_at == (1.5, 2.5)


def test_arrivals_count_from_the_first(tmp_path: Path) -> None:
    path = write(
        tmp_path / "a.jsonl", {"TIMESTAMP": "2023-11-16 18:17:03.9799600"}, {"TIMESTAMP": "2023-11-16 18:17:04.4799600"}
    )
    assert list(read_arrivals(path)) == [0.0, 0.5]
    with pytest.raises(TraceError, match="--arrivals"):
        load_trace(path)


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ('{"messages": [{"role": "user", "content": "hi"}]}', "has conversations as text"),
        ('{"conversations": []}', "has conversations as text"),
        ('{"resourceSpans": []}', "has OpenTelemetry spans; send them to `pbkv otel`"),
        ('{"prompt": "hi", "latency": 3}', r"line 1: is of no known format \(its fields are 'prompt', 'latency'\)"),
        ("TIMESTAMP,ContextTokens,GeneratedTokens", "line 1: not a line of JSON"),
        ("[1, 2]", "line 1: must be an object"),
        ("{", "line 1: not a line of JSON"),
    ],
)
def test_the_traces_of_others_are_told_what_is_accepted(tmp_path: Path, line: str, problem: str) -> None:
    path = tmp_path / "theirs.jsonl"
    path.write_text(line + "\n")
    with pytest.raises(TraceError, match=problem) as caught:
        load_trace(path)
    for name in (
        "step traces (workflow_id,",
        "coding-agent sessions (id, block_size, requests)",
        "one JSON object in each line",
    ):
        assert name in str(caught.value)


def test_a_trace_of_any_format_is_read_workflow_by_workflow(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", SESSION, broken(SESSION, id="s2", block_size=0))
    workflows = read_trace(path)
    assert next(workflows).id == "s1"
    with pytest.raises(TraceError, match="block_size"):
        next(workflows)


def broken(base: dict[str, Any], **changes: Any) -> dict[str, Any]:
    return {**base, **changes}


def session(**changes: Any) -> dict[str, Any]:
    return broken(SESSION, requests=[broken(SESSION["requests"][0], **changes)])


@pytest.mark.parametrize(
    ("line", "field"),
    [
        ({}, "id"),
        ([], "line"),
        (broken(SESSION, block_size=0), "block_size"),
        (broken(SESSION, requests=[]), "requests"),
        (broken(SESSION, requests=[7]), r"requests\[0\]"),
        (broken(SESSION, requests=[{"requests": []}]), r"requests\[0\].subagent_type"),
        (session(hash_ranges=None), r"requests\[0\].hash_ranges: is missing"),
        (session(hash_ranges=[[1]]), r"requests\[0\].hash_ranges\[0\]"),
        (session(hash_ranges=[[5, 4]]), r"requests\[0\].hash_ranges\[0\]"),
        (session(hash_ranges=[[1, 2**52]]), r"requests\[0\].hash_ranges\[0\]"),
        (session(hash_ranges=[[1, "10"]]), r"requests\[0\].hash_ranges\[0\]\[1\]"),
        (session(**{"in": 639}), r"requests\[0\].in"),
        (session(**{"in": 704}), r"requests\[0\].in"),
        (session(**{"in": 0, "hash_ranges": []}), r"requests\[0\].in"),
        (session(hash_ranges=[[1, 1]] * 65_537), r"requests\[0\].hash_ranges: must have at most 65536 entries"),
        (session(out=-1), r"requests\[0\].out"),
        (broken(SESSION, requests=[SESSION["requests"][0], {**SESSION["requests"][1], "think_time": "2"}]), r"think_time"),
        ("{", "not a line of JSON"),
    ],
)
def test_a_broken_session_is_named(line: Any, field: str, tmp_path: Path) -> None:
    path = write(tmp_path / "x.jsonl", SESSION, line)
    with pytest.raises(TraceError, match=rf"x\.jsonl, line 2: {field}|x\.jsonl, line 2: .*{field}"):
        list(read_sessions(path))


@pytest.mark.parametrize(
    ("line", "field"),
    [
        (broken(REQUEST, timestamp=-1), "timestamp"),
        (broken(REQUEST, timestamp=1.5), "timestamp"),
        (broken(REQUEST, input_length=1025), "hash_ids"),
        (broken(REQUEST, input_length=512), "hash_ids"),
        (broken(REQUEST, hash_ids=[]), "hash_ids"),
        (broken(REQUEST, hash_ids=[4] * 65_537), "hash_ids: must have at most 65536 entries"),
        (broken(REQUEST, hash_ids=[4, None]), r"hash_ids\[1\]"),
        (broken(REQUEST, hash_ids=[True, 4]), r"hash_ids\[0\]"),
        (broken(REQUEST, output_length="9"), "output_length"),
    ],
)
def test_a_broken_request_is_named(line: Any, field: str, tmp_path: Path) -> None:
    path = write(tmp_path / "y.jsonl", REQUEST, line)
    with pytest.raises(TraceError, match=rf"y\.jsonl, line 2: {field}"):
        list(read_requests(path))


@pytest.mark.parametrize("value", ["yesterday", 7, "2023-11-16 18:17:00", "2023-11-16T18:17:05+00:00"])
def test_a_broken_arrival_is_named(value: Any, tmp_path: Path) -> None:
    path = write(tmp_path / "z.jsonl", {"TIMESTAMP": "2023-11-16 18:17:03"}, {"TIMESTAMP": value})
    with pytest.raises(TraceError, match=r"z\.jsonl, line 2: TIMESTAMP"):
        list(read_arrivals(path))


def test_an_empty_file_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "empty.jsonl")
    for read in (read_sessions, read_requests, read_arrivals):
        with pytest.raises(TraceError, match="holds no lines"):
            list(read(path))
