"""Spans that real instrumentations have emitted, as `otel_recordings/record.py` recorded them."""

import json
from pathlib import Path

import pytest
from google.protobuf import json_format
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from pbkv_cluster.core.text.words import hashed_words
from pbkv_cluster.integrations.otel.reading.spans import Problems, Span, read_spans
from tests.integrations.otel_bench import DONE, ENDED, REORDER_S, SILENCE_S, STARTED, STEP, TOOL, TOOL_DONE, Bench, kinds

RECORDINGS = ["openinference", "traceloop"]
TURN = [
    (STEP, "planner"),
    (DONE, "planner"),
    (TOOL, "search"),
    (TOOL_DONE, "search"),
    (STEP, "team/researcher"),
    (DONE, "team/researcher"),
    (STEP, "team/writer"),
    (DONE, "team/writer"),
]


def requests(name: str) -> list[ExportTraceServiceRequest]:
    text = (Path(__file__).parent / "otel_recordings" / f"langgraph_{name}.json").read_text()
    return [json_format.ParseDict(each, ExportTraceServiceRequest()) for each in json.loads(text)]


def spans_of(messages: list[ExportTraceServiceRequest]) -> list[Span]:
    problems = Problems()
    found = [span for message in messages for span in read_spans(message, problems)]
    assert problems.messages == []
    assert not problems.notices.counts
    return found


def without(messages: list[ExportTraceServiceRequest], *prefixes: str) -> list[ExportTraceServiceRequest]:
    """The same spans from a version that does not write some attributes."""
    for message in messages:
        for span in message.resource_spans[0].scope_spans[0].spans:
            kept = [each for each in span.attributes if not each.key.startswith(prefixes)]
            del span.attributes[:]
            span.attributes.extend(kept)
    return messages


@pytest.mark.parametrize("name", RECORDINGS)
def test_a_graph_of_agents_in_a_conversation(name: str) -> None:
    bench = Bench()
    bench.add(*spans_of(requests(name)))
    bench.wait(REORDER_S)
    assert kinds(bench.events) == [(STARTED, ""), *TURN, *TURN]
    assert {event.workflow for event in bench.events} == {"thread-7"}
    assert {event.workload for event in bench.events} == {"trips"}
    steps = [event for event in bench.events if event.kind is DONE]
    assert {(event.prompt_tokens, event.output_tokens) for event in steps} == {(12, 3)}
    assert steps[0].words == hashed_words("First search.")
    assert next(event for event in bench.events if event.kind is STEP).words == hashed_words("Plan a trip.")
    tools = [event.agent for event in bench.events if event.kind is TOOL]
    assert tools == ["planner", "planner"]
    assert not bench.collector.notices.counts
    assert kinds(bench.wait(SILENCE_S)) == [(ENDED, "")]


def test_traceloop_without_metadata_names_the_nodes_by_their_tasks() -> None:
    bench = Bench()
    messages = without(requests("traceloop"), "traceloop.association.", "gen_ai.conversation.id")
    bench.add(*spans_of(messages))
    bench.wait(REORDER_S)
    turn = [(kind, "team" if "/" in name else name) for kind, name in TURN]
    assert sorted(kinds(bench.events)) == sorted(2 * [(STARTED, ""), *turn, (ENDED, "")])
    for workflow in {event.workflow for event in bench.events}:
        events = [event for event in bench.events if event.workflow == workflow]
        assert kinds(events) == [(STARTED, ""), *turn, (ENDED, "")]


@pytest.mark.parametrize("name", RECORDINGS)
def test_only_the_root_names_the_conversation_and_arrives_after_its_steps_were_told(name: str) -> None:
    key = {"openinference": "session.id", "traceloop": "gen_ai.conversation.id"}[name]
    bench = Bench()
    messages = requests(name)
    roots = [message for message in messages if not message.resource_spans[0].scope_spans[0].spans[0].parent_span_id]
    others = [message for message in messages if message not in roots]
    assert len(roots) == 2
    bench.add(*spans_of(without(others, key, "traceloop.association.properties.thread_id")))
    early = bench.wait(REORDER_S)
    traces = {event.workflow for event in early}
    assert "thread-7" not in traces
    assert sorted(kinds(early)) == sorted(2 * [(STARTED, ""), *TURN])
    bench.add(*spans_of(roots))
    bench.wait(REORDER_S)
    for trace in traces:
        assert kinds(event for event in bench.events if event.workflow == trace) == [(STARTED, ""), *TURN, (ENDED, "")]
    conversation = [event for event in bench.events if event.workflow == "thread-7"]
    assert kinds(conversation) == [(STARTED, ""), *TURN, *TURN]
    assert [event.sequence for event in conversation] == list(range(len(conversation)))
    assert conversation[1].words == hashed_words("Plan a trip.")
