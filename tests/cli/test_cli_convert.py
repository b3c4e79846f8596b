"""`pbkv trace convert`, and `pbkv record` from logs: what it writes, and what it says of it."""

import gzip
import json
import os
import signal
import threading
from pathlib import Path

import pytest

from pbkv_cluster.cli.traces.convert import Source
from pbkv_cluster.simulator.conversion.converters import CONVERTERS
from pbkv_cluster.simulator.traces.fields import MAX_LIST
from pbkv_cluster.simulator.traces.files import load_trace
from tests.cli.conftest import Pbkv

AZURE = "TIMESTAMP,ContextTokens,GeneratedTokens\n" + "".join(f"2023-11-16 18:17:0{at}.0,{300 + at},44\n" for at in range(4))


def log(requests: int) -> str:
    lines = []
    for at in range(requests):
        messages = [{"role": "system", "content": "You plan. " * 99}, {"role": "user", "content": f"{at}" * 40}]
        usage = {"prompt_tokens": 250, "completion_tokens": 1}
        response = {"choices": [{"message": {"content": "yes"}}], "usage": usage}
        lines.append({"time": 1000.0 + at, "request": {"model": "m", "messages": messages}, "response": response})
    return "".join(json.dumps(line) + "\n" for line in lines)


def test_every_source_has_a_converter() -> None:
    assert {source.value for source in Source} == {*CONVERTERS, "mooncake", "otlp"}


def test_lengths_alone_are_marked_and_reported_as_unknown(pbkv: Pbkv, tmp_path: Path) -> None:
    source, out = tmp_path / "azure.csv", tmp_path / "t.jsonl.gz"
    source.write_text(AZURE)
    outcome = pbkv("trace", "convert", "--from", "azure", str(source), str(out), "--json", str(tmp_path / "told.json"))
    assert outcome.code == 0, outcome.err
    told = json.loads((tmp_path / "told.json").read_text())
    assert (told["workflows"], told["steps"], told["pseudo_tokens"]) == (4, 4, told["prompt_tokens"])
    assert "lengths only: nobody knows the text of 100 % of the prompt tokens" in outcome.out
    report = pbkv("report", str(out), "--jobs", "1", "--gpu", "1", "--host", "0")
    assert report.code == 0, report.err
    assert "lengths only" in report.out


def test_mooncake_shares_its_blocks(pbkv: Pbkv, tmp_path: Path) -> None:
    source, out = tmp_path / "m.jsonl", tmp_path / "t.jsonl"
    requests = [{"timestamp": 500 * at, "input_length": 1000, "output_length": 9, "hash_ids": [4, at]} for at in range(3)]
    source.write_text("".join(json.dumps(each) + "\n" for each in requests))
    assert pbkv("trace", "convert", "--from", "mooncake", str(source), str(out)).code == 0
    assert load_trace(out).workflows[0].steps[0].prompt == load_trace(source).workflows[0].steps[0].prompt
    assert load_trace(out).starts_at == (0.0, 0.5, 1.0)


def test_a_failed_conversion_leaves_no_file(pbkv: Pbkv, tmp_path: Path) -> None:
    source, out = tmp_path / "azure.csv", tmp_path / "t.jsonl.gz"
    source.write_text("a,b\n1,2\n")
    outcome = pbkv("trace", "convert", "--from", "azure", str(source), str(out))
    assert outcome.code == 2
    assert "ContextTokens: is missing" in outcome.err
    assert not out.exists()


WHOLE = b'{"timestamp": 5, "input_length": 9, "output_length": 9, "hash_ids": [4]}\n'


def test_a_failed_conversion_leaves_what_was_there(pbkv: Pbkv, tmp_path: Path) -> None:
    source, empty, link = tmp_path / "in.jsonl", tmp_path / "empty.jsonl", tmp_path / "link.jsonl"
    source.write_bytes(WHOLE + b"[1]\n")
    empty.touch(0o640)
    link.symlink_to("target.jsonl")
    for out in (empty, link):
        assert pbkv("trace", "convert", "--from", "mooncake", str(source), str(out)).code == 2
    assert empty.read_bytes() == b""
    assert link.is_symlink()
    assert sorted(each.name for each in tmp_path.iterdir()) == ["empty.jsonl", "in.jsonl", "link.jsonl"]
    source.write_bytes(WHOLE)
    for out in (empty, link):
        assert pbkv("trace", "convert", "--from", "mooncake", str(source), str(out)).code == 0
        assert len(load_trace(out).workflows) == 1
    assert empty.stat().st_mode & 0o777 == 0o640
    assert link.readlink() == Path("target.jsonl")
    assert sorted(each.name for each in tmp_path.iterdir()) == ["empty.jsonl", "in.jsonl", "link.jsonl", "target.jsonl"]
    again = pbkv("trace", "convert", "--from", "mooncake", str(source), str(link))
    assert (again.code, again.err) == (2, f"pbkv: OUT: {link} is there already\n")


def test_a_pipe_or_a_device_is_written_and_stays(pbkv: Pbkv, tmp_path: Path) -> None:
    source, pipe = tmp_path / "in.jsonl", tmp_path / "pipe"
    source.write_bytes(WHOLE + b"[1]\n")
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    try:
        assert pbkv("trace", "convert", "--from", "mooncake", str(source), str(pipe)).code == 2
        assert pipe.is_fifo()
        assert json.loads(os.read(reader, 1 << 16))["workflow_id"] == "in-0"
    finally:
        os.close(reader)
    full = tmp_path / "full"
    full.symlink_to("/dev/full")
    source.write_bytes(WHOLE)
    outcome = pbkv("trace", "convert", "--from", "mooncake", str(source), str(full))
    assert (outcome.code, outcome.err) == (2, f"pbkv: OUT: cannot write {full}: No space left on device\n")
    assert full.is_symlink()


BAD = [b"no JSON", b"[1]", b"{}"]
AZURE_HEAD = b"TIMESTAMP,ContextTokens,GeneratedTokens"
GOOD = {
    "mooncake": b'{"timestamp": 5, "input_length": 9, "output_length": 9, "hash_ids": [4]}',
    "sharegpt": b'{"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]}',
    "access-log": b'{"time": 1, "request": {"messages": []}}',
    "otlp": b'{"resourceSpans": []}',
    "langfuse": b'{"type": "GENERATION", "traceId": "t", "input": "a"}',
    "phoenix": b'{"span_kind": "LLM", "context.trace_id": "t", "attributes": {"session.id": "s"}}',
    "azure": b"2023-11-16 18:17:00.0,1,1",
    "burstgpt": b"5,1,1",
}
WRONG = {
    "langfuse": [b"no JSON", b"[1]", b'{"type": "GENERATION"}'],
    "phoenix": [b"no JSON", b"[1]", b'{"span_kind": "LLM", "attributes": {"session.id": "s"}}'],
    "azure": [b"noon,1,1", b"2023-11-16 18:17:00.0,,1", b"2023-11-16 18:17:00.0,1,-1"],
    "burstgpt": [b"noon,1,1", b"5,,1", b"5,1,-1"],
}
HEADS = {"azure": AZURE_HEAD, "burstgpt": b"Timestamp,Request tokens,Response tokens"}


@pytest.mark.parametrize("kind", sorted(Source))
def test_all_that_is_wrong_is_said_at_once(pbkv: Pbkv, tmp_path: Path, kind: Source) -> None:
    head = [HEADS[kind]] if kind in HEADS else []
    bad = WRONG.get(kind, BAD)
    source, out = tmp_path / ("in.csv" if head else "in.jsonl"), tmp_path / "t.jsonl"
    source.write_bytes(b"\n".join([*head, GOOD[kind], *bad, GOOD[kind]]) + b"\n")
    outcome = pbkv("trace", "convert", "--from", kind, str(source), str(out))
    assert outcome.code == 2
    lines = [2 + len(head) + at for at in range(len(bad))]
    *told, count = outcome.err.splitlines()
    assert all(each.startswith(f"{source}, line {line}: ") for line, each in zip(lines, told, strict=True))
    assert count == f"pbkv: {source}: 3 problems"
    assert not out.exists()


def test_what_is_wrong_behind_the_room_of_the_file_is_told(pbkv: Pbkv, tmp_path: Path) -> None:
    source, out = tmp_path / "in.jsonl", tmp_path / "t.jsonl"
    source.write_bytes(b"\n".join([b"[1]", *[GOOD["mooncake"]] * 9, b"[2]"]))
    outcome = pbkv("trace", "convert", "--from", "mooncake", "--max-mb", "0.001", str(source), str(out))
    assert outcome.code == 2
    assert [line.split(": ")[0] for line in outcome.err.splitlines()[:2]] == [f"{source}, line {line}" for line in (1, 11)]
    assert not out.exists()
    source.write_bytes(b"\n".join([GOOD["mooncake"]] * 9))
    outcome = pbkv("trace", "convert", "--from", "mooncake", "--max-mb", "0.001", str(source), str(out))
    assert outcome.code == 1
    assert "the rest does not fit into 0.001 MB" in outcome.err
    assert 0 < len(load_trace(out).workflows) < 9


@pytest.mark.parametrize("kind", sorted(Source))
def test_what_ends_the_reading_hides_nothing_before_it(pbkv: Pbkv, tmp_path: Path, kind: Source) -> None:
    head = [HEADS[kind]] if kind in HEADS else []
    source, out = tmp_path / ("in.csv.gz" if head else "in.jsonl.gz"), tmp_path / "t.jsonl"
    whole = gzip.compress(b"\n".join([*head, GOOD[kind], WRONG.get(kind, BAD)[1], *[GOOD[kind]] * 2, b""]), mtime=0)
    source.write_bytes(whole + gzip.compress(b"")[:-4])
    outcome = pbkv("trace", "convert", "--from", kind, str(source), str(out))
    assert outcome.code == 2
    first, second, count = outcome.err.splitlines()
    assert first.startswith(f"{source}, line {2 + len(head)}: ")
    assert second.startswith(f"{source}, after line {4 + len(head)}: the gzip stream is cut short")
    assert count == f"pbkv: {source}: 2 problems"
    assert not out.exists()


def test_prompts_that_are_too_long_are_told_in_the_order_of_the_file(pbkv: Pbkv, tmp_path: Path) -> None:
    source, out = tmp_path / "in.jsonl", tmp_path / "t.jsonl"
    messages = [{"role": "user", "content": "a"}] * (MAX_LIST + 1)
    long = json.dumps({"time": 1, "request": {"messages": messages}}).encode()
    source.write_bytes(b"\n".join([GOOD["access-log"], long, b"no JSON", long, b""]))
    outcome = pbkv("trace", "convert", "--from", "access-log", str(source), str(out))
    assert outcome.code == 2
    *told, count = outcome.err.splitlines()
    assert [line.split(": ")[0] for line in told] == [f"{source}, line {line}" for line in (2, 3, 4)]
    assert count == f"pbkv: {source}: 3 problems"
    assert not out.exists()


def test_of_many_that_are_wrong_the_first_are_told(pbkv: Pbkv, tmp_path: Path) -> None:
    source = tmp_path / "in.jsonl"
    source.write_text("{}\n" * 1001)
    outcome = pbkv("trace", "convert", "--from", "sharegpt", str(source), str(tmp_path / "t.jsonl"))
    assert outcome.err.endswith(f"\npbkv: {source}: 1,001 problems, of which the first 200 are shown\n")
    assert len(outcome.err.splitlines()) == 201


def test_a_secret_makes_ids_agree(pbkv: Pbkv, tmp_path: Path) -> None:
    source, secret = tmp_path / "log.jsonl", tmp_path / "key"
    source.write_text(log(2))
    secret.write_text("a key of sixteen bytes")
    outs = [tmp_path / f"{number}.jsonl" for number in range(3)]
    for out, options in zip(outs, (("--secret", str(secret)), ("--secret", str(secret)), ()), strict=True):
        assert pbkv("trace", "convert", "--from", "access-log", *options, str(source), str(out)).code == 0
    same, again, other = (load_trace(out).workflows[0].steps[0].prompt for out in outs)
    assert same == again != other
    secret.write_text("short")
    assert "--secret: must have 16" in pbkv("record", "--out", str(tmp_path / "x.jsonl"), "--secret", str(secret)).err


def test_records_an_access_log(pbkv: Pbkv, tmp_path: Path) -> None:
    source, out = tmp_path / "log.jsonl", tmp_path / "t.jsonl.gz"
    source.write_text(log(5))
    outcome = pbkv("record", "--access-log", str(source), "--out", str(out))
    assert outcome.code == 0, outcome.err
    workflows = load_trace(out).workflows
    assert len(workflows) == 5
    assert len({each.steps[0].prompt[0].id for each in workflows}) == 1
    source.write_text(log(1) + "{}\n")
    failed = pbkv("record", "--access-log", str(source), "--out", str(tmp_path / "u.jsonl"))
    assert failed.code == 2
    assert "line 2: request: must be an object" in failed.err


def test_ctrl_c_ends_a_recording_whose_log_is_still_written(pbkv: Pbkv, tmp_path: Path) -> None:
    pipe, out, over = tmp_path / "pipe", tmp_path / "t.jsonl", threading.Event()
    os.mkfifo(pipe)

    def write() -> None:
        with pipe.open("w") as file:
            file.write(log(3))
            file.write("\n" * (1 << 20))  # far more than a pipe holds: once it is written, the calls have been read
            file.flush()
            os.kill(os.getpid(), signal.SIGINT)
            over.wait(60)

    writer = threading.Thread(target=write)
    writer.start()
    try:
        outcome = pbkv("record", "--access-log", str(pipe), "--out", str(out))
    finally:
        over.set()
        writer.join(60)
    assert outcome.code == 0, outcome.err
    assert "3 workflows, 3 of them cut" in outcome.err
    assert len(load_trace(out).workflows) == 3


def test_enough_silent_workflows_end_a_recording_whose_log_is_still_written(pbkv: Pbkv, tmp_path: Path) -> None:
    pipe, out, over = tmp_path / "pipe", tmp_path / "t.jsonl", threading.Event()
    os.mkfifo(pipe)

    def write() -> None:
        with pipe.open("w") as file:
            file.write(log(4))  # a second between two
            file.flush()
            over.wait(60)

    writer = threading.Thread(target=write)
    writer.start()
    try:
        outcome = pbkv("record", "--access-log", str(pipe), "--out", str(out), "--workflows", "2", "--silence", "2")
    finally:
        over.set()
        writer.join(60)
    assert outcome.code == 0, outcome.err
    assert "4 workflows, 2 of them cut" in outcome.err


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        (("--otlp", "0", "--access-log", "x"), "record one source at a time"),
        (("--otlp", "0", "--with-tokens"), "only a cluster has the token ids"),
    ],
)
def test_options_that_exclude_each_other_are_named(pbkv: Pbkv, tmp_path: Path, options: tuple[str, ...], problem: str) -> None:
    outcome = pbkv("record", "--out", str(tmp_path / "t.jsonl"), *options)
    assert outcome.code == 2
    assert problem in outcome.err


def test_records_spans_until_its_time_is_over(pbkv: Pbkv, tmp_path: Path) -> None:
    out = tmp_path / "t.jsonl"
    outcome = pbkv("record", "--otlp", "0", "--out", str(out), "--duration", "0.5")
    assert outcome.code == 0, outcome.err
    assert "/v1/traces" in outcome.err
    assert "0 workflows" in outcome.err
