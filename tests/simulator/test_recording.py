"""Recordings: the same prefixes are shared as in the tokens, no text is left, and the file is valid at any moment."""

import gzip
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pbkv_cluster.core.blocks import Namespace, block_keys
from pbkv_cluster.core.errors import InvalidArgument
from pbkv_cluster.core.tokens import pack
from pbkv_cluster.gateway.routing.infinite_cache import InfiniteCache
from pbkv_cluster.rpc.v1 import inspection_pb2
from pbkv_cluster.simulator.recording.cluster import ClusterRecording
from pbkv_cluster.simulator.recording.ids import keyed_ids
from pbkv_cluster.simulator.recording.known_blocks import KnownBlocks
from pbkv_cluster.simulator.recording.recorder import RecordedStep, Recorder
from pbkv_cluster.simulator.recording.trace_file import TraceFile
from pbkv_cluster.simulator.traces.check import TraceCheck
from pbkv_cluster.simulator.traces.files import load_trace
from pbkv_cluster.simulator.traces.step_traces import Segment, SegmentKind, TraceError, TraceStep
from pbkv_cluster.simulator.workload.prompts import PromptBuilder

NAMESPACE = Namespace("m", "r", "d", "l")

# Prompts that continue earlier ones at any token: earlier step, how much of its prompt and output, new tokens, output tokens.
HISTORY = st.lists(
    st.tuples(st.integers(0, 9), st.floats(0, 1), st.integers(0, 40), st.integers(1, 40)), min_size=1, max_size=10
)


def steps_of(history: list[tuple[int, float, int, int]]) -> list[tuple[list[int], list[int]]]:
    """Prompts and outputs as token ids, each new one unlike all others."""
    made: list[tuple[list[int], list[int]]] = []
    fresh = iter(range(1, 1 << 20))
    for earlier, share, new, output in history:
        before = [token for part in made[earlier % len(made)] for token in part] if made else []
        prompt = [*before[: int(share * len(before))], *(next(fresh) for _ in range(new))] or [next(fresh)]
        made.append((prompt, [next(fresh) for _ in range(output)]))
    return made


def available(steps: list[tuple[bytes, bytes]]) -> list[int]:
    """What an infinite cache would have of each prompt."""
    cache, found = InfiniteCache(1 << 20), []
    for prompt, output in steps:
        found.append(cache.match(block_keys(NAMESPACE, prompt), len(prompt) // 4))
        cache.remember(block_keys(NAMESPACE, prompt + output[:-4]))
    return found


@given(HISTORY)
def test_hashed_prompts_share_what_their_tokens_share(history: list[tuple[int, float, int, int]]) -> None:
    steps = [(pack(prompt), pack(output)) for prompt, output in steps_of(history)]
    blocks, builder = KnownBlocks(keyed_ids()), PromptBuilder()
    rebuilt = []
    for number, (prompt, output) in enumerate(steps):
        keys = block_keys(NAMESPACE, prompt + output[:-4])
        hashed = blocks.step(keys, len(prompt) // 4, len(output) // 4, str(number))
        step = TraceStep("a", hashed.prompt, hashed.output_id, len(output) // 4)
        assert step.prompt_tokens == len(prompt) // 4
        rebuilt.append((builder.prompt(step), builder.output(step)))
    assert available(rebuilt) == available(steps)


@given(HISTORY)
def test_what_is_forgotten_is_never_shared_by_mistake(history: list[tuple[int, float, int, int]]) -> None:
    steps = [(pack(prompt), pack(output)) for prompt, output in steps_of(history)]
    blocks, builder = KnownBlocks(keyed_ids(), capacity_blocks=3), PromptBuilder()
    rebuilt = []
    for number, (prompt, output) in enumerate(steps):
        keys = block_keys(NAMESPACE, prompt + output[:-4])
        hashed = blocks.step(keys, len(prompt) // 4, len(output) // 4, str(number))
        step = TraceStep("a", hashed.prompt, hashed.output_id, len(output) // 4)
        rebuilt.append((builder.prompt(step), builder.output(step)))
    assert all(mine <= true for mine, true in zip(available(rebuilt), available(steps), strict=True))


def test_ids_depend_on_the_secret_and_on_where_parts_end() -> None:
    one, other = keyed_ids(b"k" * 16), keyed_ids(b"l" * 16)
    assert one("a", "b") == one("a", b"b") == keyed_ids(b"k" * 16)("a", "b")
    assert len({one("a", "b"), one("ab", ""), one("ab"), other("a", "b"), keyed_ids()("a", "b"), keyed_ids()("a", "b")}) == 6


def step(number: int, start: float, tokens: int = 20) -> RecordedStep:
    return RecordedStep("a", (Segment(SegmentKind.HISTORY, f"s{number}", tokens),), f"o{number}", 3, start, start + 1)


@pytest.mark.parametrize("name", ["t.jsonl", "t.jsonl.gz"])
def test_the_file_is_valid_after_each_workflow(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    with TraceFile(path, 1 << 20) as file:
        recorder = Recorder(file)
        for number in range(3):
            recorder.step(f"w{number}", "app", step(number, 100.0 + number))
            recorder.tool(f"w{number}", "search")
            recorder.step(f"w{number}", "app", step(number, 104.5 + number))
            recorder.end(f"w{number}")
            assert list(TraceCheck(path).problems()) == []
            assert len(load_trace(path).workflows) == number + 1
    trace = load_trace(path)
    assert trace.starts_at == (0.0, 1.0, 2.0)
    assert [(each.tool, each.pause_s) for each in trace.workflows[0].steps] == [("search", 3.5), ("", 0.0)]


TIMES = st.none() | st.floats() | st.floats(0, 2e9)


@given(st.lists(st.tuples(TIMES, TIMES), min_size=1, max_size=5))
def test_whatever_clocks_say_the_file_can_be_read(
    tmp_path_factory: pytest.TempPathFactory, times: list[tuple[Any, Any]]
) -> None:
    path = tmp_path_factory.mktemp("recording") / "t.jsonl"
    with TraceFile(path, 1 << 20) as file:
        recorder = Recorder(file)
        for number, (started, ended) in enumerate(times):
            recorder.step("w", "app", replace(step(number, 0.0), started_s=started, ended_s=ended))
        recorder.end("w")
    assert list(TraceCheck(path).problems()) == []
    (workflow,) = load_trace(path).workflows
    assert len(workflow.steps) == len(times)


def test_open_workflows_are_written_at_the_end(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl.gz"
    with TraceFile(path, 1 << 20) as file:
        recorder = Recorder(file)
        recorder.step("w", "", step(0, 1.0))
        recorder.finish()
        assert (recorder.written, recorder.steps, recorder.cut) == (1, 1, 1)
    (workflow,) = load_trace(path).workflows
    assert workflow.workload == "unnamed"


def test_no_file_grows_beyond_its_bound(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl.gz"
    with TraceFile(path, 1000) as file:
        recorder = Recorder(file)
        for number in range(100):
            recorder.step(f"w{number}", "app", step(number, 1.0))
            recorder.end(f"w{number}")
        assert recorder.full
    assert path.stat().st_size <= 1000
    assert len(load_trace(path).workflows) == recorder.written


def test_workflows_are_cut_where_there_is_no_room_for_all(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    with TraceFile(path, 1 << 20) as file:
        recorder = Recorder(file, open_bytes=1000)
        for number in range(50):
            for each in range(3):
                recorder.step(f"w{each}", "app", step(number, float(number)))
        for each in range(3):
            recorder.end(f"w{each}")
        assert recorder.cut == recorder.written == 3
    assert list(TraceCheck(path).problems()) == []
    assert len(load_trace(path).workflows) == 3


def test_a_recording_goes_on_only_if_asked_and_only_where_it_can_be_read(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl.gz"
    for _ in range(2):
        with TraceFile(path, 1 << 20, append=True) as file:
            recorder = Recorder(file)
            recorder.step("w", "app", step(0, 5.0))
            recorder.end("w")
    assert sorted(each.id for each in load_trace(path).workflows) == ["w", "w~2"]
    with pytest.raises(InvalidArgument, match="is there already"):
        TraceFile(path, 1 << 20)
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(TraceError, match="cut short"):
        TraceFile(path, 1 << 20, append=True)


def test_nothing_but_the_fields_of_the_format_is_written(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl.gz"
    with TraceFile(path, 1 << 20) as file:
        recorder = Recorder(file)
        recorder.step("w", "app", step(0, 1.0))
        recorder.end("w")
    (line,) = gzip.decompress(path.read_bytes()).splitlines()
    expected = {"workflow_id", "workload", "step", "agent", "prompt_segments", "prompt_tokens", "output_id", "output_tokens"}
    assert set(json.loads(line)) == {*expected, "arrival_s"}


def test_agents_of_a_cluster_that_are_named_by_their_prompts_are_hashed(tmp_path: Path) -> None:
    path, ids = tmp_path / "t.jsonl", keyed_ids()
    with TraceFile(path, 1 << 20) as file:
        recorder = Recorder(file)
        recording = ClusterRecording(recorder, KnownBlocks(ids), ids)
        for agent in ("planner", "you-are-a-secret-1a2b3c", "you-are-a-secret-1a2b3c", "assistant"):
            event = inspection_pb2.WatchedEvent(workflow_id="w", workload="app", time_s=2.0)
            event.step.agent_id, event.step.prompt_tokens, event.step.output_tokens, event.step.started_s = agent, 5, 1, 1.0
            recording.add(event)
        recorder.finish()
    (workflow,) = load_trace(path).workflows
    planner, one, other, assistant = (step.agent for step in workflow.steps)
    assert (planner, assistant) == ("planner", "assistant")
    assert one == other
    assert one.startswith("agent-")
    assert "secret" not in path.read_text()


def test_workflows_of_one_step_each_are_cut_where_there_is_no_room_for_all(tmp_path: Path) -> None:
    with TraceFile(tmp_path / "t.jsonl", 1 << 20) as file:
        recorder = Recorder(file, open_bytes=4000)
        for number in range(50):
            recorder.step(f"w{number}", "app", step(number, float(number)))
        assert 40 <= recorder.written == recorder.cut < 50
        recorder.end_all()
        assert recorder.written == 50


def test_silent_workflows_end(tmp_path: Path) -> None:
    with TraceFile(tmp_path / "t.jsonl", 1 << 20) as file:
        recorder = Recorder(file)
        for number in range(4):
            recorder.step(f"w{number}", "app", step(number, float(number)))  # ends a second later
        recorder.step("w0", "app", step(9, 9.0))
        recorder.end_silent(3.0)
        assert (file.workflows, recorder.cut) == ({"w1", "w2"}, 0)
