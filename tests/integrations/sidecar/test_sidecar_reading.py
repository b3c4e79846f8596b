"""What the sidecar reads of requests and answers: what the gateway reads of those that it accepts, and not less of others."""

import json
import tracemalloc
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pbkv_cluster.core.text.chat_message import ChatMessage, FunctionCall
from pbkv_cluster.gateway.http.openai.chat import to_ask
from pbkv_cluster.gateway.http.openai.chat_request import ChatRequest
from pbkv_cluster.gateway.http.openai.responses_request import ResponsesRequest
from pbkv_cluster.integrations.sidecar.reading.answers import AnswerReader, Told
from pbkv_cluster.integrations.sidecar.reading.asked import Kind, read_request

CALL = {"id": "c1", "type": "function", "function": {"name": "look", "arguments": '{"at": 1}'}}
TOOL = {"type": "function", "function": {"name": "look", "description": "Looks.", "parameters": {"type": "object"}}}
CHAT: dict[str, Any] = {
    "model": "m",
    "messages": [
        {"role": "developer", "content": "You look."},
        {"role": "user", "content": [{"type": "text", "text": "Look"}, {"type": "text", "text": "there."}]},
        {"role": "assistant", "content": None, "tool_calls": [CALL]},
        {"role": "tool", "tool_call_id": "c1", "content": "A whale."},
        {"role": "assistant", "content": "I see a whale.", "name": "looker"},
    ],
    "tools": [TOOL],
    "metadata": {"workflow": "w", "agent": "a"},
    "nvext": {"agent_hints": {"priority": 3}},
    "max_completion_tokens": 7,
}
RESPONSE: dict[str, Any] = {
    "model": "m",
    "instructions": "You look.",
    "input": [
        {"role": "user", "content": "Look."},
        {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "I look."}]},
        {"type": "function_call", "call_id": "c1", "name": "look", "arguments": "{}"},
        {"type": "function_call", "call_id": "c2", "name": "look", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "c1", "output": "A whale."},
        {"type": "reasoning", "summary": []},
        {"type": "function_call", "call_id": "c3", "name": "look", "arguments": "{}"},
    ],
    "tools": [{"type": "function", "name": "look", "description": "Looks.", "parameters": {"type": "object"}}],
}


def test_what_the_gateway_accepts_reads_the_same() -> None:
    headers = {"x-pbkv-agent": "other"}
    ask = to_ask(ChatRequest.model_validate(CHAT), headers, 0)
    asked = read_request(Kind.CHAT, json.dumps(CHAT).encode(), headers)
    assert (asked.messages, asked.tools, asked.hints) == (ask.messages, ask.tools, ask.hints)
    assert asked.max_tokens == 7
    response = ResponsesRequest.model_validate(RESPONSE)
    asked = read_request(Kind.RESPONSE, json.dumps(RESPONSE).encode(), {})
    assert (asked.messages, list(asked.tools)) == (response.messages(), response.offered())


def test_what_is_unknown_is_left_out_and_images_are_told_apart() -> None:
    def image(url: str) -> list[Any]:
        return [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": "?"}]}]

    read = [read_request(Kind.CHAT, json.dumps({"messages": image(url)}).encode(), {}) for url in ("a", "a", "b")]
    assert read[0] == read[1] != read[2]
    assert not read[0].is_plain
    assert read[0].task.endswith("\n?")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from([*CHAT, *CALL, "role", "content"]), inner, max_size=4)
    ),
    max_leaves=12,
)


@given(st.sampled_from(Kind), st.dictionaries(st.sampled_from([*CHAT, *RESPONSE, "prompt", "input"]), JSON, max_size=5))
def test_no_body_is_refused(kind: Kind, body: dict[str, Any]) -> None:
    assert read_request(kind, json.dumps(body).encode(), {}).fields == frozenset(body)


@pytest.mark.parametrize(
    "body", [b"", b"nonsense", b"[1]", b'{"messages": [{"role": "user", "content": "\\ud800"}]}', b"[" * 9999]
)
def test_what_is_no_json_object_has_no_prompt(body: bytes) -> None:
    asked = read_request(Kind.CHAT, body, {})
    assert (asked.messages, asked.text, asked.packed, asked.fields) == ((), "", b"", frozenset())


USAGE = {"prompt_tokens": 9, "completion_tokens": 4, "prompt_tokens_details": {"cached_tokens": 5}}
CHUNKS: list[dict[str, Any]] = [
    {"choices": [{"index": 0, "delta": {"role": "assistant", "content": ""}}]},
    {"choices": [{"index": 0, "delta": {"content": "I lé"}}, {"index": 1, "delta": {"content": "Other"}}]},
    {"choices": [{"index": 0, "delta": {"content": "ok"}}]},
    {"choices": [{"index": 0, "delta": {"tool_calls": [{"index": 0, **CALL, "function": {"name": "look", "arguments": ""}}]}}]},
    {"choices": [{"index": 0, "delta": {"tool_calls": [{"index": 0, "function": {"arguments": '{"at": 1}'}}]}}]},
    {"choices": [], "usage": USAGE},
]
WHOLE = {
    "choices": [
        {"index": 0, "message": {"content": "I léok", "tool_calls": [CALL]}},
        {"index": 1, "message": {"content": "Other"}},
    ],
    "usage": USAGE,
}
TOLD = Told("I léok", [FunctionCall("look", '{"at": 1}', "c1")], 9, 5, 4)
STREAM = (
    b": a comment\r\n\r\n" + b"".join(b"data: " + json.dumps(each).encode() + b"\n\n" for each in CHUNKS) + b"data: [DONE]\n\n"
)


@given(st.lists(st.integers(1, 60)), st.booleans())
def test_an_answer_reads_the_same_in_whatever_pieces_it_comes(sizes: list[int], streamed: bool) -> None:
    rest = STREAM if streamed else json.dumps(WHOLE).encode()
    reader = AnswerReader(Kind.CHAT, streamed=streamed)
    for size in sizes:
        reader.push(rest[:size])
        rest = rest[size:]
    reader.push(rest)
    assert reader.finish() == TOLD
    assert reader.has_begun is streamed


def test_a_response_is_read_from_its_last_event() -> None:
    response = {
        "id": "resp_1",
        "output": [
            {"type": "message", "content": [{"type": "output_text", "text": "I look."}]},
            {"type": "function_call", "name": "look", "arguments": "{}", "call_id": "c1"},
        ],
        "usage": {"input_tokens": 9, "output_tokens": 4, "input_tokens_details": {"cached_tokens": 5}},
    }
    events = [{"type": "response.output_text.delta", "delta": "I"}, {"type": "response.completed", "response": response}]
    streamed, whole = AnswerReader(Kind.RESPONSE, streamed=True), AnswerReader(Kind.RESPONSE, streamed=False)
    for event in events:
        streamed.push(b"event: x\ndata: " + json.dumps(event).encode() + b"\n\n")
    whole.push(json.dumps(response).encode())
    expected = Told("I look.", [FunctionCall("look", "{}", "c1")], 9, 5, 4, "resp_1")
    assert streamed.finish() == whole.finish() == expected


@pytest.mark.parametrize("streamed", [True, False])
def test_an_answer_beyond_all_bounds_is_not_kept(streamed: bool) -> None:
    reader, piece = AnswerReader(Kind.CHAT, streamed=streamed), b"x" * (1 << 20)
    tracemalloc.start()
    for _ in range(60):
        reader.push(piece)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 30 << 20
    assert reader.finish() == Told()


def test_messages_of_a_chat_are_plain_values() -> None:
    asked = read_request(Kind.COMPLETION, b'{"prompt": ["once", "twice"]}', {})
    assert asked.text == "once"
    assert read_request(Kind.COMPLETION, b'{"prompt": [[1, 2], [3]]}', {}).packed == b"\1\0\0\0\2\0\0\0"
    assert read_request(Kind.CHAT, b'{"messages": [{"role": "user"}]}', {}).messages == (ChatMessage("user", ""),)
