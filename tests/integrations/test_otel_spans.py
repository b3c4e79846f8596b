"""Reading OTLP spans: what is read, and what is refused with which field."""

import contextlib
import json
from typing import Any

import pytest
from google.protobuf.message import DecodeError
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span as OtlpSpan

from pbkv_cluster.core.text.words import hashed_words
from pbkv_cluster.integrations.otel.reading.spans import Problems, read_spans
from pbkv_cluster.integrations.otel.reasons import Reason
from tests.integrations.otel_spans import SECOND, otlp, pairs, read, request, span

MESSAGES = [
    {"role": "system", "parts": [{"type": "text", "content": "You are terse."}]},
    {"role": "user", "parts": [{"type": "text", "content": "Plan a trip."}, {"type": "blob", "data": "x"}]},
]


def test_a_model_call() -> None:
    one = span(
        2,
        1.5,
        4,
        "chat",
        parent=1,
        agent_name="planner",
        agent_id="asst_1",
        conversation_id="c",
        usage_input_tokens=100,
        usage_output_tokens=7,
    )
    assert (one.trace, one.id, one.parent) == (f"{0xABC:032x}", f"{2:016x}", f"{1:016x}")
    assert (one.start_ns, one.end_ns) == (1.5 * SECOND, 4 * SECOND)
    assert (one.agent, one.conversation, one.workload) == ("planner", "c", "shop")
    assert (one.prompt_tokens, one.output_tokens) == (100, 7)
    assert one.is_step
    assert not one.is_tool
    assert not one.may_end


def test_the_id_stands_in_for_a_missing_name() -> None:
    assert span(1, 0.5, 1, "chat", agent_id="asst_1").agent == "asst_1"


def test_older_names_of_token_counts_are_known() -> None:
    one = span(1, 0.5, 1, "text_completion", usage_prompt_tokens=5, usage_completion_tokens=6)
    assert (one.prompt_tokens, one.output_tokens) == (5, 6)


@pytest.mark.parametrize("written", [7, 7.0, "7", " 7 "])
def test_a_count_of_tokens_may_be_text_or_a_double(written: Any) -> None:
    one = span(1, 0.5, 1, "chat", usage_input_tokens=written, usage_output_tokens=written)
    assert (one.prompt_tokens, one.output_tokens) == (7, 7)


NO_COUNTS = ["many", "7.5", "1" * 30, "\u0667", 7.5, float("inf"), float("nan"), 2**40, -1, "-1", True, [7]]


@pytest.mark.parametrize("written", NO_COUNTS)
def test_a_count_of_tokens_that_is_none_costs_only_the_count(written: Any) -> None:
    (one,), problems = read(otlp(1, 0.5, 1, "chat", agent_name="a", usage_input_tokens=written, usage_output_tokens=3))
    assert (one.agent, one.prompt_tokens, one.output_tokens) == ("a", 0, 3)
    assert problems.rejected == 0
    (message,) = problems.messages
    assert message.startswith("gen_ai.usage.input_tokens: ")
    assert problems.notices.counts == {Reason.TOKENS_UNREADABLE: 1}


def test_a_conversation_may_have_a_number() -> None:
    assert span(1, 0.5, 1, "chat", conversation_id=17).conversation == "17"


def test_a_workflow_is_not_an_agent() -> None:
    one = span(1, 0.5, 1, "invoke_workflow", agent_name="trip", workflow_name="trip")
    assert (one.agent, one.workload) == ("", "shop")
    assert span(1, 0.5, 1, "chat", workflow_name="trip").workload == "trip"


@pytest.mark.parametrize("messages", [MESSAGES, json.dumps(MESSAGES)], ids=["structured", "json"])
def test_words_of_the_task_and_the_answer(messages: Any) -> None:
    answer = [{"role": "assistant", "content": "Go to Rome."}]
    one = span(1, 0.5, 1, "chat", input_messages=messages, output_messages=answer)
    assert one.task == hashed_words("Plan a trip.")
    assert one.output == hashed_words("Go to Rome.")


def test_words_from_events() -> None:
    details = {"gen_ai.output.messages": [{"role": "assistant", "content": "Go."}]}
    one = span(
        1,
        0.5,
        1,
        "chat",
        events={"gen_ai.user.message": {"content": "Plan."}, "gen_ai.client.inference.operation.details": details},
    )
    assert (one.task, one.output) == (hashed_words("Plan."), hashed_words("Go."))
    older = span(1, 0.5, 1, "chat", events={"gen_ai.choice": {"message": json.dumps({"content": "Go."})}})
    assert older.output == hashed_words("Go.")


@pytest.mark.parametrize("cut", ['[{"role": "us', 7, [3], "{}" * 3, "[" * 100_000])
def test_unreadable_messages_cause_a_warning_only(cut: Any) -> None:
    (one,), problems = read(otlp(1, 0.5, 1, "chat", agent_name="a", input_messages=cut))
    assert (one.agent, one.task) == ("a", ())
    assert problems.rejected == 0
    (message,) = problems.messages
    assert message.startswith("gen_ai.input.messages: ")
    assert problems.notices.counts == {Reason.TEXT_UNREADABLE: 1}


@pytest.mark.parametrize(
    ("bad", "field"),
    [
        (otlp(1, 0.5, 1, "chat", agent_name=3), "gen_ai.agent.name"),
        (otlp(1, 0.5, 1, "chat", agent_name="x" * 257), "gen_ai.agent.name"),
        (otlp(1, 0.5, 1, "chat", conversation_id=["c"]), "gen_ai.conversation.id"),
        (otlp(1, 0.5, 1, "execute_tool"), "gen_ai.tool.name"),
        (OtlpSpan(attributes=pairs({"gen_ai.operation.name": "chat"})), "trace_id"),
        (OtlpSpan(trace_id=bytes(16)), "trace_id"),
        (OtlpSpan(trace_id=b"t" * 16, span_id=b"short"), "span_id"),
        (OtlpSpan(trace_id=b"t" * 16, span_id=b"s" * 8, parent_span_id=b"p"), "parent_span_id"),
        (otlp(1, 0, 1, "chat"), "start_time_unix_nano"),
        (otlp(1, 2, 1, "chat"), "end_time_unix_nano"),
    ],
)
def test_a_malformed_span_is_rejected_by_name_and_the_others_are_taken(bad: OtlpSpan, field: str) -> None:
    spans, problems = read(otlp(5, 1, 2, "chat"), bad, otlp(6, 1, 2, "chat"))
    assert [each.id for each in spans] == [f"{5:016x}", f"{6:016x}"]
    assert problems.rejected == 1
    (message,) = problems.messages
    assert f": {field}: " in message
    assert problems.notices.counts == {Reason.SPAN_MALFORMED: 1}


def test_the_spans_of_a_malformed_resource_are_rejected() -> None:
    spans, problems = read(otlp(1, 1, 2, "chat"), otlp(2, 1, 2, "chat"), service=7)
    assert spans == []
    assert problems.rejected == 2
    assert problems.messages == ["resource: service.name: must be a string, got int"]


@pytest.mark.parametrize("service", ["unknown_service", "unknown_service:python3", ""])
def test_applications_without_a_name_are_not_one_workload(service: str, caplog: pytest.LogCaptureFixture) -> None:
    spans, problems = read(otlp(1, 1, 2, "chat"), otlp(2, 1, 2, "chat"), service=service)
    assert [each.workload for each in spans] == ["", ""]
    assert (problems.messages, problems.notices.counts) == ([], {Reason.SERVICE_UNKNOWN: 2})
    (line,) = caplog.messages
    assert "OTEL_SERVICE_NAME" in line


def test_an_answer_reports_only_a_few_problems() -> None:
    _, problems = read(*[otlp(number, 2, 1, "chat") for number in range(1, 100)])
    assert problems.rejected == 99
    assert len(problems.messages) == 8


@given(st.binary(max_size=300))
def test_random_bytes_do_not_crash_it(data: bytes) -> None:
    message = ExportTraceServiceRequest()
    good = request([otlp(1, 1, 2, "chat", agent_name="a", input_messages=MESSAGES)]).SerializeToString()
    at = len(data) * 7 % len(good)
    with contextlib.suppress(DecodeError):  # such bytes are refused before they reach the reader
        message.ParseFromString(good[:at] + data + good[at + len(data) :])
    for one in read_spans(message, Problems()):
        assert one.start_ns <= one.end_ns
