"""The trace reader: it reads the real files completely, and raises TraceError for every malformed one."""

import gzip
import json
import statistics
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pbkv_cluster.simulator.traces.step_traces import Segment, SegmentKind, TraceError, TraceStep, TraceWorkflow, read_workflows

WORKLOADS = Path(__file__).resolve().parents[2] / "../shared/workloads"

# workflows and agents as in the folder's README; median and longest run as in the files themselves, of which the README
# describes a superset
REAL = {
    "autocoderover": (531, 3, 9, 66),
    "chatdev_cli": (112, 5, 14, 21),
    "chatdev_humaneval": (637, 5, 14, 33),
    "chatdev_programdev": (106, 6, 17, 49),
    "chatdev_prompted": (101, 5, 16, 36),
    "chatdev_qwen": (75, 5, 52, 58),
    "metagpt_code": (65, 5, 6, 61),
    "sweagent": (168, 1, 10, 22),
    "taubench_airline": (124, 2, 19, 45),
    "whowhen_captain": (70, 103, 5, 8),
    "whowhen_magentic": (37, 4, 20, 65),
}


def record(workflow: str = "w", step: int = 0, **changes: Any) -> dict[str, Any]:
    """One well-formed line."""
    line = {
        "workflow_id": workflow,
        "workload": "unit",
        "step": step,
        "agent": "coder",
        "prompt_segments": [
            {"kind": "system", "id": "s", "tokens": 5},
            {"kind": "task", "id": "t", "tokens": 7, "pseudo": True},
        ],
        "prompt_tokens": 12,
        "output_tokens": 3,
        "output_id": f"{workflow}/{step}",
        "tool_s": 1.5,
        "action": "run",
        "phase": "coding",
        "words": [1, 2],
    }
    return {**line, **changes}


def lines(*records: dict[str, Any]) -> bytes:
    return b"".join(json.dumps(entry).encode() + b"\n" for entry in records)


def read(tmp_path: Path, content: bytes, name: str = "trace.jsonl") -> list[TraceWorkflow]:
    path = tmp_path / name
    path.write_bytes(content)
    return list(read_workflows(path))


@pytest.mark.parametrize("name", REAL)
def test_reads_a_real_trace_whole(name: str) -> None:
    path = WORKLOADS / f"{name}.jsonl.gz"
    if not path.exists():
        pytest.skip(f"the recorded traces are not beside the project: {path}")
    workflows = list(read_workflows(path))
    lengths = [len(workflow.steps) for workflow in workflows]
    agents = {step.agent for workflow in workflows for step in workflow.steps}
    assert (len(workflows), len(agents), statistics.median(lengths), max(lengths)) == REAL[name]
    assert {workflow.workload for workflow in workflows} == {name}


def test_keeps_what_later_code_uses(tmp_path: Path) -> None:
    system, task = Segment(SegmentKind.SYSTEM, "s", 5), Segment(SegmentKind.TASK, "t", 7, pseudo=True)
    first = TraceStep("coder", (system, task), "w/0", 3, call_site="coding", tool="run", pause_s=1.5, words=(1, 2))
    last = TraceStep("coder", (system, task), "w/1", 3, words=(1, 2))
    content = lines(record(), record(step=1, tool_s=None, action=None, phase=""))
    assert read(tmp_path, content) == [TraceWorkflow("w", "unit", (first, last))]
    assert first.prompt_tokens == 12


def test_a_workflow_is_of_its_tasks_group(tmp_path: Path) -> None:
    content = lines(
        record("a", task_group="t"), record("a", 1), record("b", task_group="t"), record("c"), record("d", task_group="")
    )
    assert [workflow.group for workflow in read(tmp_path, content)] == ["t", "t", "c", "d"]
    torn = lines(record("a", task_group="t"), record("a", 1, task_group="u"))
    with pytest.raises(TraceError, match=r"line 2: task_group: must be 't', as in the workflow's first line, got 'u'"):
        read(tmp_path, torn)


def test_plain_and_gzipped_are_one(tmp_path: Path) -> None:
    content = lines(record("a"), record("b"), record("b", 1))
    assert read(tmp_path, content) == read(tmp_path, gzip.compress(content), "trace.jsonl.gz")


def test_streams_workflows_before_a_bad_line(tmp_path: Path) -> None:
    path = tmp_path / "trace.jsonl"
    path.write_bytes(lines(record("a"), record("b")) + b"{")
    stream = read_workflows(path)
    assert next(stream).id == "a"
    with pytest.raises(TraceError, match=r"trace\.jsonl, line 3: not a line of JSON"):
        next(stream)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"agent": 3}, r"agent: must be a string that is not empty, got 3"),
        ({"agent": ""}, r"agent: must be a string"),
        ({"agent": "\ud800"}, r"agent: is not valid Unicode"),
        ({"agent": "a" * 300}, r"agent: must take at most 256 bytes, takes 300"),
        ({"workflow_id": None}, r"workflow_id: must be a string"),
        ({"task_group": 7}, r"task_group: must be a string"),
        ({"step": "0"}, r"step: must be a whole number, got '0'"),
        ({"step": True}, r"step: must be a whole number, got True"),
        ({"step": 1}, r"step: must be 0, the next of its workflow, got 1"),
        ({"output_tokens": -1}, r"output_tokens: must be from 0 to \d+, got -1"),
        ({"output_tokens": 1.0}, r"output_tokens: must be a whole number"),
        ({"output_tokens": 10**30}, r"output_tokens: must be from 0 to \d+, got a number beyond all bounds"),
        ({"prompt_tokens": 11}, r"prompt_tokens: is 11, but the segments hold 12"),
        ({"prompt_segments": []}, r"prompt_segments: must hold at least one token"),
        ({"prompt_segments": {}}, r"prompt_segments: must be a list, got an object"),
        ({"prompt_segments": [7]}, r"prompt_segments\[0\]: must be an object, got 7"),
        ({"prompt_segments": [{"kind": "joke", "id": "s", "tokens": 1}]}, r"prompt_segments\[0\]\.kind: 'joke' is unknown"),
        ({"prompt_segments": [{"kind": "task", "tokens": 1}]}, r"prompt_segments\[0\]\.id: is missing"),
        ({"prompt_segments": [{"kind": "task", "id": "t", "tokens": -4}]}, r"prompt_segments\[0\]\.tokens: must be from 0"),
        ({"tool_s": -1}, r"tool_s: must be from 0 to 1e9 seconds, got -1"),
        ({"tool_s": float("nan")}, r"tool_s: must be from 0 to 1e9 seconds, got nan"),
        ({"tool_s": float("inf")}, r"tool_s: must be from 0 to 1e9 seconds, got inf"),
        ({"tool_s": "soon"}, r"tool_s: must be a number of seconds or null, got 'soon'"),
        ({"action": 5}, r"action: must be a string"),
    ],
)
def test_names_file_line_and_field(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    content = lines(record("before"), record(**changes))
    with pytest.raises(TraceError, match=rf"trace\.jsonl, line 2: {message}"):
        read(tmp_path, content)


@pytest.mark.parametrize("field", sorted(set(record()) - {"tool_s", "action", "phase", "words"}))
def test_names_a_missing_field(tmp_path: Path, field: str) -> None:
    entry = record()
    del entry[field]
    with pytest.raises(TraceError, match=rf"line 1: {field}: is missing"):
        read(tmp_path, lines(entry))


def test_optional_fields_may_be_absent(tmp_path: Path) -> None:
    entry = {key: value for key, value in record().items() if key not in ("tool_s", "action", "phase", "words")}
    (workflow,) = read(tmp_path, lines(entry))
    assert (workflow.steps[0].tool, workflow.steps[0].call_site, workflow.steps[0].pause_s) == ("", "", 0.0)


@pytest.mark.parametrize("name", ["trace.jsonl", "trace.jsonl.gz"])
def test_a_line_of_any_length_is_refused_by_its_number_before_it_is_read(tmp_path: Path, name: str) -> None:
    """A few megabytes of gzip can hold gigabytes without a line's end."""
    long = lines(record("a")) + b'{"workflow_id": "' + b"x" * (18 << 20)
    with pytest.raises(TraceError, match=r"line 2: longer than 16,777,216 bytes; is it one JSON object per line"):
        read(tmp_path, gzip.compress(long) if name.endswith("gz") else long, name)
    blank = lines(record("a")) + b" " * (18 << 20)
    with pytest.raises(TraceError, match="line 2: longer than 16,777,216 bytes"):
        read(tmp_path, gzip.compress(blank) if name.endswith("gz") else blank, name)


def test_lists_and_totals_are_bounded(tmp_path: Path) -> None:
    segment = {"kind": "task", "id": "t", "tokens": 1}
    for changes, message in (
        ({"prompt_segments": [segment] * 65_537}, "prompt_segments: must have at most 65536 entries, has 65537"),
        ({"words": [1] * 65_537}, "words: must have at most 65536 entries"),
        ({"task_words": [1] * 65_537}, "task_words: must have at most 65536 entries"),
        (
            {"prompt_segments": [{**segment, "tokens": 16 << 20}] * 2},
            "prompt_segments: must hold at most 16777216 tokens in all",
        ),
    ):
        with pytest.raises(TraceError, match=f"line 1: {message}"):
            read(tmp_path, lines(record(**changes)))


def test_a_workflow_has_a_bounded_number_of_steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pbkv_cluster.simulator.traces.step_traces.MAX_STEPS", 2)
    with pytest.raises(TraceError, match="line 3: step: a workflow may have at most 2 steps"):
        read(tmp_path, lines(record(), record(step=1), record(step=2)))


def test_fields_that_nothing_knows_are_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    known = record(task_group="g", start_s=1.0, end_s=2.0, task_words=[1])
    read(tmp_path, lines(known))
    assert caplog.text == ""
    misspelt = {**record(), "pahse": "coding", "prompt_segments": [{"kind": "task", "id": "t", "tokens": 12, "role": "x"}]}
    read(tmp_path, lines(misspelt, {**misspelt, "step": 1}))
    assert "trace.jsonl: fields that this format does not have were ignored: " in caplog.text
    assert "pahse (2 times)" in caplog.text
    assert "prompt_segments[].role (2 times)" in caplog.text


def test_refuses_scattered_and_shuffled_workflows(tmp_path: Path) -> None:
    with pytest.raises(TraceError, match=r"line 3: workflow_id: 'a' goes on after another workflow"):
        read(tmp_path, lines(record("a"), record("b"), record("a", 1)))
    with pytest.raises(TraceError, match=r"line 2: step: must be 1, .* got 2"):
        read(tmp_path, lines(record("a"), record("a", 2)))


def test_refuses_what_is_no_trace(tmp_path: Path) -> None:
    content = lines(record("a"), record("b"))
    packed = gzip.compress(content)
    for name, bad, message in (
        ("empty.jsonl", b"", "holds no steps"),
        ("blank.jsonl", b"\n \n", "holds no steps"),
        ("binary.jsonl", b"\xff\xfe\x00", "line 1: not a line of JSON"),
        ("deep.jsonl", b"[" * 200_000, "line 1: not a line of JSON"),
        ("digits.jsonl", b"1" * 5000, "line 1: not a line of JSON"),
        ("plain.jsonl.gz", content, "not a gzip file"),
        ("short.jsonl.gz", packed[:-9], "the gzip stream is cut short"),
        ("checksum.jsonl.gz", packed[:-8] + bytes(8), "not a gzip file, or a damaged one"),
    ):
        with pytest.raises(TraceError, match=message):
            read(tmp_path, bad, name)
    with pytest.raises(TraceError, match=r"cannot read .*: No such file"):
        list(read_workflows(tmp_path / "missing.jsonl"))
    with pytest.raises(TraceError, match=r"cannot read .*: Is a directory"):
        list(read_workflows(tmp_path))


GOOD = lines(record("a"), record("a", 1), record("b"))
JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


@given(position=st.integers(0, len(GOOD)), removed=st.integers(0, 40), inserted=st.binary(max_size=20), packed=st.booleans())
def test_damaged_bytes_are_read_or_refused(
    tmp_path_factory: pytest.TempPathFactory, position: int, removed: int, inserted: bytes, packed: bool
) -> None:
    whole = gzip.compress(GOOD, mtime=0) if packed else GOOD
    position = position % (len(whole) + 1)
    damaged = whole[:position] + inserted + whole[position + removed :]
    _read_or_refuse(tmp_path_factory, damaged, "trace.jsonl.gz" if packed else "trace.jsonl")


@given(field=st.sampled_from(sorted(record())), value=JSON_VALUES, inside=st.sampled_from(["", "kind", "id", "tokens"]))
def test_wrong_values_are_read_or_refused(
    tmp_path_factory: pytest.TempPathFactory, field: str, value: object, inside: str
) -> None:
    segment = {"kind": "task", "id": "t", "tokens": 12}
    changed = {**record(), field: value}
    if inside:
        changed = record(prompt_segments=[{**segment, inside: value}])
    _read_or_refuse(tmp_path_factory, lines(changed), "trace.jsonl")


def _read_or_refuse(tmp_path_factory: pytest.TempPathFactory, content: bytes, name: str) -> None:
    path = tmp_path_factory.mktemp("traces") / name
    path.write_bytes(content)
    try:
        workflows = list(read_workflows(path))
    except TraceError as error:
        assert str(path) in str(error)  # noqa: PT017  # either outcome is right
    else:
        assert workflows
        assert all(step.prompt_tokens > 0 and step.output_tokens >= 0 for workflow in workflows for step in workflow.steps)
