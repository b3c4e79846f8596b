"""A result is not written over what the command reads, or over another of its results."""

from pathlib import Path

import pytest

from tests.cli.agent_traces import write_trace
from tests.cli.conftest import Pbkv

# The last option of each names a file to write; the name is that of the other file.
COMMANDS = [
    (("trace", "check", "{trace}", "--json"), "TRACE"),
    (("trace", "convert", "--from", "mooncake", "{trace}", "{out}", "--json"), "IN"),
    (("trace", "convert", "--from", "mooncake", "{trace}", "{out}", "--secret", "{trace}", "--json"), "IN"),
    (("record", "--access-log", "{trace}", "--out", "{out}", "--json"), "--access-log"),
    (("report", "{trace}", "--json"), "TRACE"),
    (("report", "{trace}", "--html"), "TRACE"),
    (("replay", "{trace}", "--json"), "FILE"),
    (("simulate", "{trace}", "--json"), "TRACE"),
    (("simulate", "{trace}", "--plot"), "TRACE"),
    (("tune", "{trace}", "--out"), "TRACE"),
    (("tune", "{trace}", "--out", "{out}", "--json"), "TRACE"),
    (("train", "{trace}", "--out", "{folder}", "--json"), "TRACE"),
    (("predictor", "eval", "--test", "{trace}", "--json"), "--test"),
]


@pytest.mark.parametrize(("command", "name"), COMMANDS)
def test_what_is_read_is_not_written_over(pbkv: Pbkv, tmp_path: Path, command: tuple[str, ...], name: str) -> None:
    trace, link = write_trace(tmp_path / "t.jsonl"), tmp_path / "link.jsonl"
    link.symlink_to(trace.name)
    before = trace.read_bytes()
    names = {"trace": trace, "out": tmp_path / "new", "folder": tmp_path / "state"}
    outcome = pbkv(*(part.format(**names) for part in command), str(link))
    assert (outcome.code, outcome.err) == (2, f"pbkv: {command[-1]}: {link} is the file of {name}: give another\n")
    assert trace.read_bytes() == before
    assert sorted(each.name for each in tmp_path.iterdir()) == ["link.jsonl", "t.jsonl"]


@pytest.mark.parametrize(
    ("command", "name"),
    [
        (("trace", "convert", "--from", "mooncake", "{trace}", "{out}"), "OUT"),
        (("record", "--access-log", "{trace}", "--out", "{out}"), "--out"),
        (("report", "{trace}", "--html", "{out}"), "--html"),
        (("tune", "{trace}", "--out", "{out}"), "--out"),
    ],
)
def test_two_results_have_two_files(pbkv: Pbkv, tmp_path: Path, command: tuple[str, ...], name: str) -> None:
    trace, out = write_trace(tmp_path / "t.jsonl"), tmp_path / "new"
    json_target = f"{tmp_path}/../{tmp_path.name}/new"
    outcome = pbkv(*(part.format(trace=trace, out=out) for part in command), "--json", json_target)
    assert (outcome.code, outcome.err) == (2, f"pbkv: --json: {json_target} is the file of {name}: give another\n")
    assert not out.exists()


def test_a_device_takes_several_results(pbkv: Pbkv, tmp_path: Path) -> None:
    trace = tmp_path / "in.jsonl"
    trace.write_text('{"timestamp": 5, "input_length": 9, "output_length": 9, "hash_ids": [4]}\n')
    outcome = pbkv("trace", "convert", "--from", "mooncake", str(trace), "/dev/null", "--json", "/dev/null")
    assert outcome.code == 0, outcome.err
