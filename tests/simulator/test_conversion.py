"""What others log becomes a trace without text that shares what the texts share; what cannot be read is named."""

import gzip
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pbkv_cluster.core.text.chat_message import ChatMessage
from pbkv_cluster.gateway.http.sessions.chains import agent_name, is_of_prompt
from pbkv_cluster.simulator.conversion.conversion import Converted, convert_calls
from pbkv_cluster.simulator.conversion.converters import CONVERTERS
from pbkv_cluster.simulator.recording.calls import ASSISTANT, Call, Message
from pbkv_cluster.simulator.recording.conversation import PIECE_CHARACTERS, TextSteps
from pbkv_cluster.simulator.recording.ids import keyed_ids
from pbkv_cluster.simulator.recording.trace_file import TraceFile
from pbkv_cluster.simulator.traces.check import TraceCheck
from pbkv_cluster.simulator.traces.files import Trace, load_trace
from pbkv_cluster.simulator.traces.step_traces import TraceError, TraceStep
from pbkv_cluster.simulator.workload.prompts import PromptBuilder

SYSTEM = "You are a careful planner of journeys by train. " * 8
SECRETS = ("planner of journeys", "to Rome", "via Milan")


def convert(kind: str, source: Path, out: Path) -> tuple[Converted, Trace]:
    with TraceFile(out, 1 << 24) as file:
        done = convert_calls(CONVERTERS[kind].read(source, None), keyed_ids(), file)
    assert list(TraceCheck(out).problems()) == []
    return done, load_trace(out)


def written(path: Path, content: str | Sequence[Any]) -> Path:
    text = content if isinstance(content, str) else "".join(json.dumps(each) + "\n" for each in content)
    path.write_text(text)
    return path


def common(one: TraceStep, other: TraceStep) -> int:
    """Tokens that two prompts share from the start."""
    left, right = (PromptBuilder(vocab_size=1 << 20).prompt(step) for step in (one, other))
    return next((at for at in range(0, len(left), 4) if left[at : at + 4] != right[at : at + 4]), len(left)) // 4


CHAT = [
    {"role": "system", "content": SYSTEM},
    {"role": "user", "content": "I want to go to Rome."},
    {"role": "assistant", "content": "Go via Milan, at nine."},
    {"role": "user", "content": "And back?"},
]


def test_azure_has_lengths_only(tmp_path: Path) -> None:
    source = written(
        tmp_path / "azure.csv",
        "TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:17:03.9799600,374,44\n2023-11-16 18:17:05.4799600,396,109\n",
    )
    done, trace = convert("azure", source, tmp_path / "t.jsonl.gz")
    assert done.pseudo_tokens == done.prompt_tokens == 374 + 396
    assert trace.starts_at == (0.0, 1.5)
    first, second = (each.steps[0] for each in trace.workflows)
    assert (first.prompt_tokens, first.output_tokens) == (374, 44)
    assert common(first, second) == 0


def test_burstgpt_has_sessions_in_its_second_version(tmp_path: Path) -> None:
    head = "Timestamp,Session ID,Elapsed time,Model,Request tokens,Response tokens,Total tokens,Log Type"
    rows = [
        "5,7,2.5,GPT-4,472,18,490,Conversation log",
        "45,7,,GPT-4,500,20,520,Conversation log",
        "50,8,1,ChatGPT,9,9,18,API log",
    ]
    done, trace = convert("burstgpt", written(tmp_path / "b.csv", "\n".join([head, *rows])), tmp_path / "t.jsonl")
    assert (done.workflows, done.steps) == (2, 3)
    assert [step.pause_s for step in trace.workflows[0].steps] == [37.5, 0.0]
    assert {step.agent for each in trace.workflows for step in each.steps} == {"GPT-4", "ChatGPT"}


@pytest.mark.parametrize("as_list", [False, True])
def test_sharegpt_becomes_one_workflow_a_conversation(tmp_path: Path, as_list: bool) -> None:
    turns = [{"from": {"user": "human", "assistant": "gpt"}.get(m["role"], m["role"]), "value": m["content"]} for m in CHAT]
    conversations = [{"id": f"c{n}", "conversations": [*turns, {"from": "gpt", "value": f"At ten{n}."}]} for n in range(2)]
    source = written(tmp_path / "s.json", json.dumps(conversations, indent=2) if as_list else conversations)
    _, trace = convert("sharegpt", source, tmp_path / "t.jsonl.gz")
    assert [len(each.steps) for each in trace.workflows] == [2, 2]
    first, second = trace.workflows[0].steps
    # The reply comes back, so the second prompt begins with the first one and its reply.
    assert common(first, second) == first.prompt_tokens
    assert second.prompt[len(first.prompt)].id == first.output_id
    assert common(second, trace.workflows[1].steps[1]) == second.prompt_tokens
    assert trace.starts_at is None


def log_line(at: float, messages: list[dict[str, Any]], reply: str, **more: Any) -> dict[str, Any]:
    size = sum(len(message["content"]) for message in messages)
    return {
        "time": at,
        "duration_s": 2.0,
        "request": {"model": "m", "messages": messages},
        "response": {
            "choices": [{"message": {"role": "assistant", "content": reply}}],
            "usage": {"prompt_tokens": size // 5, "completion_tokens": 6},
        },
        **more,
    }


def test_an_access_log_tells_workflows_by_what_they_continue(tmp_path: Path) -> None:
    one, other = [*CHAT[:2]], [CHAT[0], {"role": "user", "content": "Book a table for two in Paris."}]
    lines = [log_line(1e9, one, CHAT[2]["content"]), log_line(1e9 + 1, other, "Done."), log_line(1e9 + 9, CHAT, "At ten.")]
    _, trace = convert("access-log", written(tmp_path / "log.jsonl", lines), tmp_path / "t.jsonl.gz")
    assert [len(each.steps) for each in trace.workflows] == [2, 1]
    assert trace.starts_at == (0.0, 1.0)
    first, second = trace.workflows[0].steps
    assert first.pause_s == 7.0
    assert common(first, second) == first.prompt_tokens
    assert len({step.agent for each in trace.workflows for step in each.steps}) == 1
    logged = sum(line["response"]["usage"]["prompt_tokens"] for line in lines)
    assert sum(step.prompt_tokens for each in trace.workflows for step in each.steps) == pytest.approx(logged, rel=0.2)


def test_an_access_log_takes_names_from_headers(tmp_path: Path) -> None:
    headers = {"X-Pbkv-Workflow": "w", "X-Pbkv-Agent": "planner", "X-Pbkv-Workload": "travel"}
    lines = [log_line(10.0 * at, CHAT[:2], f"r{at}", headers=headers) for at in range(2)]
    lines[0]["response"]["choices"][0]["message"]["tool_calls"] = [{"function": {"name": "search", "arguments": "{}"}}]
    _, trace = convert("access-log", written(tmp_path / "log.jsonl", lines), tmp_path / "t.jsonl")
    (workflow,) = trace.workflows
    assert (workflow.id, workflow.workload) == ("w", "travel")
    assert [(step.agent, step.tool) for step in workflow.steps] == [("planner", "search"), ("planner", "")]


def test_langfuse_knows_agents_and_sessions(tmp_path: Path) -> None:
    def generation(number: int, start: str, messages: list[dict[str, Any]]) -> dict[str, Any]:
        return {
            "id": f"g{number}",
            "traceId": f"t{number}",
            "sessionId": "s",
            "type": "GENERATION",
            "name": "ChatOpenAI",
            "parentObservationId": f"a{number}",
            "startTime": start,
            "endTime": start.replace(":00.", ":01."),
            "input": json.dumps(messages) if number else {"messages": messages},
            "output": {"role": "assistant", "content": CHAT[2]["content"]},
            "usage": {"input": 120, "output": 9},
        }

    agents = [{"id": f"a{n}", "traceId": f"t{n}", "type": "AGENT", "name": f"planner{n}"} for n in range(2)]
    records = [generation(1, "2026-01-01T00:00:00.500Z", CHAT), generation(0, "2025-12-31T23:59:00.000Z", CHAT[:2]), *agents]
    for source in (written(tmp_path / "l.jsonl", records), written(tmp_path / "l.json", json.dumps(records))):
        _, trace = convert("langfuse", source, tmp_path / f"{source.suffix}.jsonl")
        (workflow,) = trace.workflows
        assert workflow.id == "s"
        assert [step.agent for step in workflow.steps] == ["planner0", "planner1"]
        assert [step.output_tokens for step in workflow.steps] == [9, 9]
        assert workflow.steps[0].pause_s == 59.5
        assert common(*workflow.steps) == workflow.steps[0].prompt_tokens


@pytest.mark.parametrize("flat", [False, True])
def test_phoenix_knows_agents_and_sessions(tmp_path: Path, flat: bool) -> None:
    def span(number: int, kind: str, name: str, parent: str, messages: list[dict[str, Any]]) -> dict[str, Any]:
        inputs = [{f"message.{key}": text for key, text in message.items()} for message in messages]
        output = [{"message": {"role": "assistant", "content": CHAT[2]["content"]}}]
        nested = {"llm": {"input_messages": inputs, "output_messages": output, "token_count": {"prompt": 120, "completion": 9}}}
        columns = {
            "attributes.llm.input_messages": inputs,
            "attributes.llm.output_messages": output,
            "attributes.llm.token_count.prompt": 120,
            "attributes.llm.token_count.completion": 9,
            "context.trace_id": "t",
            "context.span_id": f"s{number}",
        }
        common_part = {"name": name, "span_kind": kind, "parent_id": parent, "start_time": f"2026-01-01T00:00:0{number}+00:00"}
        common_part["end_time"] = common_part["start_time"]
        return common_part | (
            columns if flat else {"context": {"trace_id": "t", "span_id": f"s{number}"}, "attributes": nested}
        )

    spans = [span(2, "LLM", "call", "s0", CHAT), span(1, "LLM", "call", "s0", CHAT[:2]), span(0, "AGENT", "planner", "", [])]
    done, trace = convert("phoenix", written(tmp_path / "p.jsonl", spans), tmp_path / "t.jsonl")
    assert (done.workflows, done.steps, done.pseudo_tokens) == (1, 2, 0)
    steps = trace.workflows[0].steps
    assert [step.agent for step in steps] == ["planner", "planner"]
    assert common(*steps) == steps[0].prompt_tokens


def test_agents_that_nobody_names_are_told_apart_without_words_of_their_prompts(tmp_path: Path) -> None:
    other = [{"role": "system", "content": "You are an accountant of the crown."}, CHAT[1]]
    prompts = [CHAT[:2], other, CHAT[1:2]]
    lines = [log_line(float(at), prompts[at % 3], "Yes.") for at in range(6)]
    source = written(tmp_path / "log.jsonl", lines)
    _, trace = convert("access-log", source, tmp_path / "t.jsonl")
    agents = [step.agent for each in trace.workflows for step in each.steps]
    assert len(set(agents)) == 3
    assert {re.sub("[0-9a-f]{10}$", "#", agent) for agent in agents} == {"agent-#", "assistant"}
    for word in ("careful", "you-are", "crown"):
        assert word not in (tmp_path / "t.jsonl").read_text()
    _, again = convert("access-log", source, tmp_path / "again.jsonl")  # under another secret
    assert {step.agent for each in again.workflows for step in each.steps} & set(agents) == {"assistant"}


@pytest.mark.parametrize("system", ["You are a planner", "!", "1 2 3", "İstanbul " * 9, "x" * 99, "国" * 40])
def test_names_made_of_prompts_are_known_as_such(system: str) -> None:
    assert is_of_prompt(agent_name([ChatMessage("system", system)], ()))
    assert not any(map(is_of_prompt, ("planner", "assistant", "news-writer", "a_b-123abc", "agent-0123456789")))


def test_no_text_is_left(tmp_path: Path) -> None:
    source = written(tmp_path / "log.jsonl", [log_line(1.0, CHAT, "Take the night train to Rome.")])
    convert("access-log", source, tmp_path / "t.jsonl")
    text = (tmp_path / "t.jsonl").read_text()
    for secret in SECRETS:
        assert secret in source.read_text()
        assert secret not in text


TEXTS = st.text(st.sampled_from("ab"), max_size=3 * PIECE_CHARACTERS)


@given(beginning=TEXTS, ends=st.tuples(TEXTS, TEXTS), reply=TEXTS)
def test_texts_share_whole_pieces_and_never_more(beginning: str, ends: tuple[str, str], reply: str) -> None:
    texts = TextSteps(keyed_ids())
    prompts = [
        texts.step(Call("w", "l", "a", (Message("user", beginning + end), Message(ASSISTANT, reply)), reply="x")).prompt
        for end in ends
    ]
    one, other = (TraceStep("a", prompt, "o", 1) for prompt in prompts)
    whole = [beginning + end for end in ends]
    alike = next((at for at, (a, b) in enumerate(zip(*whole, strict=False)) if a != b), min(map(len, whole)))
    if whole[0] == whole[1]:
        assert common(one, other) == one.prompt_tokens
    else:
        pieces = alike // PIECE_CHARACTERS
        shared = next((at for at, pair in enumerate(zip(*prompts, strict=False)) if pair[0].id != pair[1].id), None)
        assert shared == pieces


@pytest.mark.parametrize(
    ("kind", "content", "problem"),
    [
        ("azure", "a,b\n1,2\n", "ContextTokens: is missing"),
        ("azure", "TIMESTAMP,ContextTokens,GeneratedTokens\nnoon,1,1\n", "line 2: TIMESTAMP: must be a time"),
        ("burstgpt", "Timestamp,Request tokens,Response tokens\n1,-5,2\n", "Request tokens: must be a number of tokens"),
        ("sharegpt", '{"conversations": 5}\n', "line 1: conversations: must be a list"),
        ("sharegpt", "[1, 2]", "record 1: must be an object"),
        ("sharegpt", "[" * 100_000, "not JSON"),
        ("access-log", '{"time": 1}\n', "line 1: request: must be an object"),
        ("access-log", '{"time": 1, "request": {}}\n', "line 1: request: must have messages"),
        ("access-log", '{"time": true, "request": {"messages": []}}\n', "line 1: time: must be a time"),
        ("access-log", '{"time": 1, "request": {"messages": [5]}}\n', "request.messages[0]: must be a message"),
        ("access-log", '{"time": "1969-12-31", "request": {"messages": []}}\n', "line 1: time: must be a time"),
        ("access-log", '{"time": 1, "headers": {"x-pbkv-agent": "\\ud800"}, "request": {"messages": []}}\n', "must be UTF-8"),
        ("access-log", '{"time": 1, "request": {"metadata": {"agent": "\\ud800"}, "messages": []}}\n', "agent"),
        ("access-log", json.dumps({"time": 1, "request": {"messages": [""] * 65537}}), "line 1: a prompt of 65,537 segments"),
        ("langfuse", '{"type": "GENERATION"}\n', "traceId: is missing"),
        ("phoenix", '{"span_kind": "LLM"}\n', "context.trace_id: is missing"),
        ("phoenix", '{"span_kind": "CHAIN", "context": {"trace_id": "t"}}\n', "no call of a model"),
        ("sharegpt", "", "holds no records"),
    ],
)
def test_what_cannot_be_read_is_named(tmp_path: Path, kind: str, content: str, problem: str) -> None:
    source = written(
        tmp_path / ("in.csv" if "," in content and "{" not in content and "[" not in content else "in.jsonl"), content
    )
    if kind in ("azure", "burstgpt"):
        source = source.rename(tmp_path / "in.csv")
    with TraceFile(tmp_path / "t.jsonl", 1 << 20) as file, pytest.raises(TraceError) as raised:
        convert_calls(CONVERTERS[kind].read(source, None), keyed_ids(), file)
    assert problem in str(raised.value)
    assert file.size_bytes == 0


@pytest.mark.parametrize("kind", sorted(CONVERTERS))
def test_a_file_that_is_not_there_or_not_zipped_is_named(tmp_path: Path, kind: str) -> None:
    for source in (tmp_path / "none.json", written(tmp_path / "in.json.gz", "[]\n")):
        with pytest.raises(TraceError, match=source.name):
            list(CONVERTERS[kind].read(source, None))


def test_an_access_log_may_have_any_characters(tmp_path: Path) -> None:
    messages = [{"role": "system", "content": "Du bist \ud800"}, {"role": "user", "content": "\udfff" * 99}]
    lines = [log_line(1.0, messages, "\ud800"), log_line(2.0, messages, "ja", headers={"x-pbkv-agent": "Zürich 東京"})]
    _, trace = convert("access-log", written(tmp_path / "log.jsonl", lines), tmp_path / "t.jsonl")
    agents = {step.agent for each in trace.workflows for step in each.steps}
    assert len(agents) == 2
    assert "Zürich 東京" in agents


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    source = tmp_path / "in.jsonl.gz"
    source.write_bytes(gzip.compress(b'{"conversations": []}\n' * 1000)[:-20])
    with TraceFile(tmp_path / "t.jsonl", 1 << 20) as file, pytest.raises(TraceError, match="cut short or damaged"):
        convert_calls(CONVERTERS["sharegpt"].read(source, None), keyed_ids(), file)
