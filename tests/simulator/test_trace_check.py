"""`TraceCheck` finds all that is wrong with a file, and nothing exactly where the reader reads the file to its end."""

import gzip
import json
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pbkv_cluster.simulator.traces.check import TraceCheck
from pbkv_cluster.simulator.traces.files import load_trace
from pbkv_cluster.simulator.traces.format import LINE_FIELDS, SEGMENT_FIELDS, TYPES
from pbkv_cluster.simulator.traces.step_traces import MAX_LINE_BYTES, TraceError
from pbkv_cluster.simulator.traces.writing import encoded, line_of
from pbkv_cluster.simulator.workload.generator import generate
from tests.simulator.simulated import lines_of

DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "traces.md"


def lines(workflows: int = 3) -> list[dict[str, Any]]:
    return [line_of(each, at) for each in generate(workflows, max_steps=4) for at in range(len(each.steps))]


def check(path: Path, content: bytes) -> list[str]:
    path.write_bytes(content)
    return [str(problem) for problem in TraceCheck(path).problems()]


def readable(path: Path) -> bool:
    try:
        load_trace(path)
    except TraceError:
        return False
    return True


def test_what_is_written_is_read_again(tmp_path: Path) -> None:
    workflows = tuple(generate(5))
    path = tmp_path / "t.jsonl"
    assert check(path, b"".join(lines_of(workflows))) == []
    assert load_trace(path).workflows == workflows


VALUES = st.one_of(
    st.none(), st.booleans(), st.integers(-2, 5), st.floats(allow_nan=True), st.text(max_size=3), st.just([]), st.just({})
)


@given(data=st.data())
def test_a_file_is_fine_exactly_if_it_can_be_read(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    made = lines()
    for _ in range(data.draw(st.integers(0, 3))):
        line = data.draw(st.sampled_from(made))
        target = line if data.draw(st.booleans()) else data.draw(st.sampled_from(line["prompt_segments"] or [{}]))
        name = data.draw(st.sampled_from([spec.name for spec in (*LINE_FIELDS, *SEGMENT_FIELDS)]))
        if isinstance(target, dict):
            target.pop(name, None)
            if data.draw(st.booleans()):
                target[name] = data.draw(VALUES)
        if not isinstance(line.get("prompt_segments"), list):
            line["prompt_segments"] = [{}]
    if data.draw(st.booleans()):
        made.insert(data.draw(st.integers(0, len(made))), data.draw(st.sampled_from(made)))
    path = tmp_path_factory.mktemp("checked") / "t.jsonl"
    found = check(path, b"".join(map(encoded, made)))
    # What nothing reads is checked, but does not keep a file from being read.
    unread = ("available_tokens", "delivered_tokens", "prompt_token_ids", "output_token_ids", "task_words")
    assert readable(path) == (not [each for each in found if not any(name in each for name in unread)])


def test_all_problems_of_all_lines_are_named(tmp_path: Path) -> None:
    made = lines(1)
    made[0]["agent"] = 7
    made[0]["tool_s"] = -1
    made[0]["prompt_segments"][0]["kind"] = "poem"
    made[0]["prompt_segments"][1] = "text"
    made[1]["prompt_tokens"] += 1
    made[2]["step"] = 5
    content = b"".join(map(encoded, made)) + b"{not json\n" + b"[1]\n"
    found = check(tmp_path / "t.jsonl", content)
    number = len(made)
    expected = [
        ("line 1: agent: must be a string", 1),
        ("line 1: tool_s: must be from 0", 1),
        ("line 1: prompt_segments[0].kind: 'poem' is unknown", 1),
        ("line 1: prompt_segments[1]: must be an object", 1),
        ("line 2: prompt_tokens: is", 1),
        ("line 3: step: must be 2", 1),
        (f"line {number + 1}: not a line of JSON", 1),
        (f"line {number + 2}: line: must be an object", 1),
    ]
    assert [sum(each.startswith(start) for each in found) for start, _ in expected] == [count for _, count in expected]


def test_a_wrong_line_is_not_held_against_those_that_follow(tmp_path: Path) -> None:
    made = lines(1)
    made[0]["agent"] = ""
    assert [each.partition(":")[0] for each in check(tmp_path / "t.jsonl", b"".join(map(encoded, made)))] == ["line 1"]


def test_fields_that_nobody_knows_are_counted(tmp_path: Path) -> None:
    made = lines(1)
    for line in made:
        line["agnet"] = 1
    path = tmp_path / "t.jsonl"
    path.write_bytes(b"".join(map(encoded, made)))
    checked = TraceCheck(path)
    assert list(checked.problems()) == []
    assert checked.unknown == {"agnet": len(made)}


def test_a_gzip_file_that_is_cut_short_is_checked_up_to_the_cut(tmp_path: Path) -> None:
    made = lines(40)
    made[0]["agent"] = 0
    whole = gzip.compress(b"".join(map(encoded, made)))
    found = check(tmp_path / "t.jsonl.gz", whole[: len(whole) * 3 // 4])
    assert found[0].startswith("line 1: agent")
    assert "cut short or damaged" in found[-1]


def test_a_line_without_end_is_not_read_to_its_end(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl.gz"
    with gzip.open(path, "wb", 1) as file:
        file.write(b'{"workflow_id": "')
        for _ in range(64):
            file.write(b"x" * (1 << 20))
    (found,) = [str(problem) for problem in TraceCheck(path).problems()]
    assert f"longer than {MAX_LINE_BYTES:,} bytes" in found


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        (
            {"id": "s", "block_size": 64, "requests": [{"in": 5, "out": 1, "hash_ranges": [[3, 1]]}]},
            "requests[0].hash_ranges[0]",
        ),
        ({"timestamp": 0, "input_length": 5, "output_length": 1, "hash_ids": []}, "hash_ids"),
    ],
)
def test_other_formats_are_checked_line_by_line(tmp_path: Path, line: dict[str, Any], problem: str) -> None:
    found = check(tmp_path / "t.jsonl", 3 * (json.dumps(line).encode() + b"\n"))
    assert [each.startswith(f"line {at}: {problem}") for at, each in enumerate(found, start=1)] == [True] * 3


def test_the_document_has_every_field() -> None:
    text = DOCUMENT.read_text()
    for spec in (*LINE_FIELDS, *SEGMENT_FIELDS):
        assert spec.row in text, f"docs/traces.md lacks this row: {spec.row}"
    for name, meaning in TYPES.items():
        assert f"| {name} | {meaning} |" in text, f"docs/traces.md lacks the type {name}"
    rows = re.findall(r"^\| `\w+` \| [\w ]+ \| (?:yes|no) \| ", text, re.MULTILINE)
    assert len(rows) == len(LINE_FIELDS) + len(SEGMENT_FIELDS), "a row of docs/traces.md is of no field"
