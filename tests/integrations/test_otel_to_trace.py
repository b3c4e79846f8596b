"""Spans become a trace: from files of real instrumentations, and from an OTLP port."""

import asyncio
import base64
import gzip
import json
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pbkv_cluster.core.clock import ManualClock
from pbkv_cluster.integrations.otel.reading.spans import Problems, read_spans
from pbkv_cluster.integrations.otel.recording.files import otlp_calls
from pbkv_cluster.integrations.otel.recording.live import OtlpRecording
from pbkv_cluster.simulator.conversion.conversion import convert_calls
from pbkv_cluster.simulator.recording.calls import Message
from pbkv_cluster.simulator.recording.ids import keyed_ids
from pbkv_cluster.simulator.recording.recorder import Recorder
from pbkv_cluster.simulator.recording.trace_file import TraceFile
from pbkv_cluster.simulator.traces.check import TraceCheck
from pbkv_cluster.simulator.traces.files import Trace, load_trace
from pbkv_cluster.simulator.traces.step_traces import TraceError
from tests.integrations.otel_spans import otlp, request

TURN = ["planner", "team/researcher", "team/writer"]


def as_exported(value: Any) -> Any:
    """A recording as the collector's file exporter writes it: ids in hex."""
    if isinstance(value, list):
        return [as_exported(each) for each in value]
    if not isinstance(value, dict):
        return value
    ids = ("traceId", "spanId", "parentSpanId")
    return {key: base64.b64decode(each).hex() if key in ids else as_exported(each) for key, each in value.items()}


def recording(name: str) -> list[Any]:
    text = (Path(__file__).parent / "otel_recordings" / f"langgraph_{name}.json").read_text()
    exported: list[Any] = as_exported(json.loads(text))
    return exported


def converted(source: Path, out: Path) -> Trace:
    with TraceFile(out, 1 << 24) as file:
        convert_calls(otlp_calls(source), keyed_ids(), file)
    assert list(TraceCheck(out).problems()) == []
    return load_trace(out)


@pytest.mark.parametrize(("name", "alike"), [("openinference", (0, 3)), ("traceloop", (0, 1))])
def test_files_of_real_instrumentations(tmp_path: Path, name: str, alike: tuple[int, int]) -> None:
    source = tmp_path / "spans.jsonl.gz"
    with gzip.open(source, "wt") as file:
        file.writelines(json.dumps(each) + "\n" for each in recording(name))
    (workflow,) = converted(source, tmp_path / "t.jsonl").workflows
    assert (workflow.id, workflow.workload) == ("thread-7", "trips")
    assert [step.agent for step in workflow.steps] == TURN + TURN
    assert [step.tool for step in workflow.steps] == ["search", "", ""] * 2
    assert [step.output_tokens for step in workflow.steps] == [3] * 6
    assert not any(segment.pseudo for step in workflow.steps for segment in step.prompt)
    # One records an agent's instructions, which both turns begin with; the other the task alone, which all agents begin with.
    first, second = (workflow.steps[at].prompt[0] for at in alike)
    assert first == second


def prompt(*texts: str) -> str:
    return json.dumps([{"role": "user", "parts": [{"type": "text", "content": text}]} for text in texts])


def calls(number: int, trace: int) -> Iterator[Any]:
    for at in range(2):
        yield otlp(
            10 * number + at + 1,
            100.0 + 10 * at,
            101.0 + 10 * at,
            "chat",
            trace=trace,
            agent_name="planner",
            input_messages=prompt("Go to Rome.", *["And then?"] * at),
            output_messages=json.dumps([{"role": "assistant", "parts": [{"type": "text", "content": "By train."}]}]),
            usage_input_tokens=3 + at,
            usage_output_tokens=2,
        )
    yield otlp(10 * number + 5, 102.0, 105.0, "execute_tool", trace=trace, tool_name="search")


def test_the_text_of_a_span_is_read_only_if_asked_for() -> None:
    message = request(list(calls(1, 7)))
    plain, whole = (list(read_spans(message, Problems(), with_text=with_text)) for with_text in (False, True))
    assert plain[0].messages == ()
    assert plain[0].reply == ""
    assert whole[1].messages == (Message("user", "Go to Rome."), Message("user", "And then?"))
    assert whole[1].reply == "By train."


def test_a_trace_is_written_once_it_is_silent(tmp_path: Path) -> None:
    clock, path = ManualClock(), tmp_path / "t.jsonl.gz"
    with TraceFile(path, 1 << 20) as file:
        recorder = Recorder(file)
        live = OtlpRecording(recorder, keyed_ids(), clock, silence_s=60)
        live.export(request(list(calls(1, 7))))
        clock.advance(30)
        live.export(request(list(calls(2, 8))))
        live.release()
        assert recorder.written == 0
        clock.advance(31)
        live.release()
        assert (recorder.written, recorder.steps) == (1, 2)
        clock.advance(60)
        live.release()
        assert recorder.written == 2
    one, other = load_trace(path).workflows
    assert [step.agent for step in one.steps] == ["planner", "planner"]
    assert [(step.tool, step.pause_s) for step in one.steps] == [("search", 9.0), ("", 0.0)]
    assert one.steps[0].prompt == other.steps[0].prompt
    assert one.steps[1].prompt[0] == one.steps[0].prompt[0]
    assert "Rome" not in gzip.decompress(path.read_bytes()).decode()


def test_requests_beyond_the_bound_are_refused(tmp_path: Path) -> None:
    message = request(list(calls(1, 7)))
    with TraceFile(tmp_path / "t.jsonl", 1 << 20) as file:
        live = OtlpRecording(Recorder(file), keyed_ids(), ManualClock(), 60, open_bytes=message.ByteSize() + 10)
        assert not live.export(message).partial_success.rejected_spans
        refused = live.export(request(list(calls(2, 8)))).partial_success
        assert refused.rejected_spans == 3
        assert "open traces take more than" in refused.error_message
        live.release(all_of_them=True)
        assert not live.export(request(list(calls(2, 8)))).partial_success.rejected_spans


async def test_spans_are_taken_over_http(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    with TraceFile(path, 1 << 20) as file:
        live = OtlpRecording(Recorder(file), keyed_ids(), ManualClock(), 60)
        address = await live.serve("127.0.0.1", 0)
        body = request(list(calls(1, 7))).SerializeToString()
        headers = {"content-type": "application/x-protobuf"}
        post = urllib.request.Request(f"http://{address}/v1/traces", body, headers)
        answer = await asyncio.to_thread(urllib.request.urlopen, post, timeout=20)
        assert answer.status == 200
        await live.stop()
    assert len(load_trace(path).workflows) == 1


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ('{"spans": [1]}\n', "record|resourceSpans: is missing"),
        ('{"resourceSpans": 5}\n', "is no ExportTraceServiceRequest"),
        (json.dumps({"resourceSpans": [{"scopeSpans": [{"spans": [{"name": "x"}]}]}]}) + "\n", "1 spans are malformed"),
    ],
)
def test_what_is_no_otlp_is_named(tmp_path: Path, content: str, problem: str) -> None:
    source = tmp_path / "spans.jsonl"
    source.write_text(content)
    with pytest.raises(TraceError, match=problem):
        list(otlp_calls(source))
