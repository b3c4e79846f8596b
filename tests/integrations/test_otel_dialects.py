"""Each dialect of attributes tells the same: what a span is, and the facts of a step."""

import json
import logging
from typing import Any

import pytest

from pbkv_cluster.core.text.words import hashed_words
from pbkv_cluster.integrations.otel.reading.dialects import DIALECTS, Role, normalised
from pbkv_cluster.integrations.otel.reading.facts import graph_node
from pbkv_cluster.integrations.otel.reading.spans import Span
from pbkv_cluster.integrations.otel.reasons import Notices, Reason
from tests.integrations.otel_bench import DONE, PARENT_S, REORDER_S, STARTED, STEP, Bench, kinds
from tests.integrations.otel_spans import otlp, read

TASK, ANSWER = "Plan a trip.", "Go to Rome."
ASK = [{"role": "system", "content": "You plan."}, {"role": "user", "content": TASK}]

STEPS: dict[str, dict[str, Any]] = {
    "conventions": {
        "gen_ai.operation.name": "chat",
        "gen_ai.conversation.id": "c",
        "gen_ai.agent.name": "planner",
        "gen_ai.usage.input_tokens": 12,
        "gen_ai.usage.output_tokens": 3,
        "gen_ai.input.messages": json.dumps([{"role": "user", "parts": [{"type": "text", "content": TASK}]}]),
        "gen_ai.output.messages": json.dumps([{"role": "assistant", "parts": [{"type": "text", "content": ANSWER}]}]),
    },
    "capitalised": {
        "gen_ai.operation.name": "Chat",
        "gen_ai.conversation.id": "c",
        "gen_ai.agent.name": "planner",
        "gen_ai.usage.prompt_tokens": "12",
        "gen_ai.usage.completion_tokens": 3.0,
        "gen_ai.input.messages": ASK,
        "gen_ai.output.messages": [{"role": "assistant", "content": ANSWER}],
    },
    "openinference": {
        "openinference.span.kind": "LLM",
        "session.id": "c",
        "agent.name": "planner",
        "llm.token_count.prompt": 12,
        "llm.token_count.completion": 3,
        "llm.input_messages.0.message.role": "system",
        "llm.input_messages.0.message.content": "You plan.",
        "llm.input_messages.1.message.role": "user",
        "llm.input_messages.1.message.contents.0.message_content.type": "text",
        "llm.input_messages.1.message.contents.0.message_content.text": TASK,
        "llm.output_messages.0.message.role": "assistant",
        "llm.output_messages.0.message.content": ANSWER,
    },
    "openllmetry": {
        "llm.request.type": "chat",
        "traceloop.association.properties.session_id": "c",
        "traceloop.association.properties.langgraph_node": "planner",
        "gen_ai.usage.prompt_tokens": 12,
        "gen_ai.usage.completion_tokens": 3,
        "gen_ai.prompt.0.role": "system",
        "gen_ai.prompt.0.content": "You plan.",
        "gen_ai.prompt.1.role": "user",
        "gen_ai.prompt.1.content": TASK,
        "gen_ai.completion.0.role": "assistant",
        "gen_ai.completion.0.content": ANSWER,
    },
    "oldest openllmetry": {
        "llm.request.type": "chat",
        "traceloop.association.properties.chat_id": "c",
        "traceloop.association.properties.langgraph_node": "planner",
        "llm.usage.prompt_tokens": 12,
        "llm.usage.completion_tokens": 3,
        "llm.prompts.0.role": "user",
        "llm.prompts.0.content": TASK,
        "llm.completions.0.content": ANSWER,
    },
    "vercel": {
        "ai.operationId": "ai.generateText.doGenerate",
        "operation.name": "ai.generateText.doGenerate planner",
        "ai.telemetry.functionId": "planner",
        "ai.telemetry.metadata.sessionId": "c",
        "ai.usage.promptTokens": 12,
        "ai.usage.completionTokens": 3,
        "ai.prompt.messages": json.dumps([{"role": "user", "content": [{"type": "text", "text": TASK}]}]),
        "ai.response.text": ANSWER,
    },
}


def one(attributes: dict[str, Any], name: str = "") -> Span:
    message = otlp(1, 0.5, 1, other=attributes)
    message.name = name or message.name
    (span,), problems = read(message)
    assert not problems.messages
    assert not problems.notices.counts
    return span


@pytest.mark.parametrize("dialect", STEPS)
def test_a_step(dialect: str) -> None:
    span = one(STEPS[dialect])
    assert span.role is Role.STEP
    assert (span.agent, span.conversation, span.prompt_tokens, span.output_tokens) == ("planner", "c", 12, 3)
    assert (span.task, span.output) == (hashed_words(TASK), hashed_words(ANSWER))


@pytest.mark.parametrize(
    "attributes",
    [
        {"gen_ai.operation.name": "Execute_Tool", "gen_ai.tool.name": "search"},
        {"openinference.span.kind": "TOOL", "tool.name": "search"},
        {"openinference.span.kind": "TOOL"},
        {"traceloop.span.kind": "tool", "traceloop.entity.name": "search"},
        {"ai.operationId": "ai.toolCall", "ai.toolCall.name": "search"},
    ],
)
def test_a_tool_call(attributes: dict[str, Any]) -> None:
    span = one(attributes, name="search")
    assert span.is_tool
    assert span.tool == "search"


@pytest.mark.parametrize(
    "attributes",
    [
        {"gen_ai.operation.name": "InvokeAgent", "gen_ai.agent.name": "planner"},
        {"openinference.span.kind": "AGENT", "agent.name": "planner"},
        {"openinference.span.kind": "AGENT", "graph.node.id": "planner"},
        {"openinference.span.kind": "AGENT"},
        {"traceloop.span.kind": "agent", "traceloop.entity.name": "planner"},
        {"ai.operationId": "ai.streamText", "ai.telemetry.functionId": "planner"},
    ],
)
def test_an_agent(attributes: dict[str, Any]) -> None:
    span = one(attributes, name="planner")
    assert (span.role, span.agent) == (Role.AGENT, "planner")


@pytest.mark.parametrize("written", ["chat", "Chat", "CHAT", " chat "])
def test_capitals_do_not_matter(written: str) -> None:
    assert normalised(written) == "chat"


def test_separators_do_not_matter() -> None:
    assert {normalised(each) for each in ("text_completion", "Text-Completion", "textCompletion", "text completion")} == {
        "text_completion"
    }


def test_every_kind_of_the_table_is_as_it_is_looked_up() -> None:
    for dialect in DIALECTS:
        assert [normalised(kind) for kind in dialect.roles] == list(dialect.roles), dialect.name


def test_general_names_count_only_in_spans_of_their_dialect() -> None:
    # A web server's session is not a conversation with agents.
    span = one({"gen_ai.operation.name": "chat", "session.id": "browser", "agent.name": "Mozilla"})
    assert (span.conversation, span.agent) == ("", "")


@pytest.mark.parametrize(
    ("path", "agent"),
    [
        ("planner:1f0c-22", "planner"),
        ("team:f82d|writer:8ece", "team/writer"),
        ("team:f82d|1|writer:8ece", "team/writer"),  # the second run of the same graph in one step
        ("planner", "planner"),
        ("", ""),
        ("é" * 200 + ":1", "é" * 128),
    ],
)
def test_the_agent_of_a_path_of_langgraph(path: str, agent: str) -> None:
    assert graph_node(path) == agent


@pytest.mark.parametrize("metadata", ["{", "[1]", '{"langgraph_node": 3}', '{"langgraph_node": "\\ud800"}', "[" * 100_000, 3])
def test_metadata_that_cannot_be_used_costs_nothing_else(metadata: Any) -> None:
    span = one({"openinference.span.kind": "LLM", "llm.token_count.prompt": 5, "metadata": metadata})
    assert (span.prompt_tokens, span.agent) == (5, "?" if "ud800" in str(metadata) else "")


def graph(*, node: bool) -> list[Any]:
    """Spans of a graph as OpenLLMetry writes them; its older versions do not tell the node on each span."""

    def traceloop(kind: str, name: str, at: str) -> dict[str, Any]:
        where = {"traceloop.association.properties.langgraph_node": at} if node and at else {}
        return {"traceloop.span.kind": kind, "traceloop.entity.name": name, **where}

    return [
        otlp(5, 2, 3, "chat", parent=4, other=traceloop("task", "x", "planner") if node else {}),
        otlp(4, 1.5, 3.5, "execute_task", parent=3, other=traceloop("task", "RunnableSequence", "planner")),
        otlp(3, 1.2, 4, "execute_task", parent=2, other=traceloop("task", "planner", "planner")),
        otlp(7, 5, 6, "chat", parent=6),
        otlp(6, 4.5, 7, "execute_task", parent=2, other=traceloop("task", "writer", "writer")),
        otlp(2, 1.1, 8, "invoke_agent", parent=1, agent_name="LangGraph", other=traceloop("workflow", "LangGraph", "")),
        otlp(1, 1, 9, "invoke_agent", agent_name="LangGraph"),
    ]


def test_the_outermost_task_of_a_graph_is_the_agent() -> None:
    bench = Bench()
    spans, problems = read(*graph(node=False))
    assert not problems.messages
    bench.add(*spans)
    steps = [(kind, agent) for kind, agent in kinds(bench.wait(REORDER_S)) if kind is STEP]
    assert steps == [(STEP, "planner"), (STEP, "writer")]


def test_a_step_in_no_task_has_the_graphs_name() -> None:
    bench = Bench()
    spans, _ = read(*graph(node=False)[-2:], otlp(9, 2, 3, "chat", parent=2))
    bench.add(*spans)
    assert (STEP, "LangGraph") in kinds(bench.wait(REORDER_S))


def test_a_task_of_an_agent_is_not_the_agent() -> None:
    bench = Bench()
    spans, _ = read(
        otlp(3, 2, 3, "chat", parent=2),
        otlp(2, 1, 4, parent=1, other={"traceloop.span.kind": "task", "traceloop.entity.name": "call_model"}),
        otlp(1, 1, 5, other={"traceloop.span.kind": "agent", "traceloop.entity.name": "planner"}),
    )
    bench.add(*spans)
    assert (STEP, "planner") in kinds(bench.wait(REORDER_S))


def test_a_task_must_not_be_taken_for_the_agent_before_the_spans_around_it_are_known() -> None:
    bench = Bench()
    spans, _ = read(*graph(node=False)[:2])
    bench.add(*spans)
    assert bench.wait(PARENT_S - 1) == []
    bench.add(*read(*graph(node=False)[2:3])[0])
    assert kinds(bench.wait(1)) == [(STARTED, ""), (STEP, "planner"), (DONE, "planner")]


@pytest.mark.parametrize(
    ("attributes", "reason", "shown"),
    [
        ({"gen_ai.operation.name": "ponder"}, Reason.OPERATION_UNKNOWN, "gen_ai.operation.name = 'ponder'"),
        ({"openinference.span.kind": "SEANCE"}, Reason.OPERATION_UNKNOWN, "openinference.span.kind = 'SEANCE'"),
        ({"llm.request.type": "video"}, Reason.OPERATION_UNKNOWN, "llm.request.type = 'video'"),
        ({"ai.operationId": "ai.dream"}, Reason.OPERATION_UNKNOWN, "ai.operationId = 'ai.dream'"),
        ({"gen_ai.request.model": "m"}, Reason.OPERATION_MISSING, "'ponder 1' has attributes gen_ai.*"),
        ({"llm.model_name": "m"}, Reason.OPERATION_MISSING, "'ponder 1' has attributes llm.*"),
    ],
)
def test_what_is_not_understood_is_counted_and_logged_once(
    attributes: dict[str, Any], reason: Reason, shown: str, caplog: pytest.LogCaptureFixture
) -> None:
    messages = [otlp(number, 0.5, 1, other=attributes) for number in range(1, 6)]
    for message in messages:
        message.name = "ponder 1"
    with caplog.at_level(logging.WARNING):
        spans, problems = read(*messages)
    assert [span.role for span in spans] == [Role.OTHER] * 5
    assert problems.notices.counts == {reason: 5}
    (record,) = caplog.records
    assert getattr(record, "reason", None) == reason
    assert shown in record.getMessage()


def test_a_span_of_no_generative_ai_is_no_problem() -> None:
    assert one({"http.request.method": "GET", "session.id": "s"}).role is Role.OTHER


def test_one_dialect_may_say_what_another_does_not_know() -> None:
    span = one({"gen_ai.operation.name": "ponder", "openinference.span.kind": "LLM", "llm.token_count.prompt": 4})
    assert (span.role, span.prompt_tokens) == (Role.STEP, 4)


def test_a_log_of_many_causes_ends(caplog: pytest.LogCaptureFixture) -> None:
    notices = Notices()
    for number in range(100):
        notices.note(Reason.OPERATION_UNKNOWN, f"operation {number}")
    notices.note(Reason.SPAN_DUPLICATE)
    assert len(caplog.messages) == 32
    assert "further causes are only counted" in caplog.messages[-1]
    assert notices.summary() == "operation_unknown 100"


def test_a_step_without_an_agent_is_counted_and_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    bench = Bench()
    spans, _ = read(*[otlp(number, number, number + 0.5, "chat") for number in range(1, 4)])
    bench.add(*spans)
    bench.wait(REORDER_S)
    assert bench.collector.notices.counts[Reason.AGENT_UNKNOWN] == 3
    (record,) = caplog.records
    assert getattr(record, "reason", None) == "agent_unknown"
    assert "'shop'" in record.getMessage()


def test_a_trace_without_a_step_is_counted_and_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    bench = Bench()
    for trace in (1, 2):
        bench.add(*read(otlp(1, 1, 2, "invoke_agent", trace=trace, agent_name="a"))[0])
    assert bench.wait(PARENT_S) == []
    assert bench.collector.notices.counts == {Reason.TRACE_WITHOUT_STEP: 2}
    assert len(caplog.messages) == 1
