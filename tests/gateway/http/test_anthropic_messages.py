"""Messages with Anthropic's own client: answers, streams, tools and errors."""

from typing import Any

import anthropic
import pytest

from pbkv_cluster.core.usage import Tier
from pbkv_cluster.core.workflow.events import EventKind
from tests.gateway.http.http_rig import MODEL, http_running
from tests.gateway.http.test_workflow_recognition import call_then_answer
from tests.gateway.peers import ScriptedWorker

USER: list[Any] = [{"role": "user", "content": "What is the capital of France?"}]
TOOL: Any = {"name": "search", "description": "finds", "input_schema": {"type": "object", "properties": {"q": {}}}}


async def test_a_message_and_its_usage() -> None:
    worker = ScriptedWorker("w0", say=lambda prompt: "Paris.", captured={Tier.GPU: 16})
    async with http_running(worker) as http, http.anthropic() as client:
        system: Any = [{"type": "text", "text": "Be brief.", "cache_control": {"type": "ephemeral"}}]
        answer = await client.messages.create(model=MODEL, max_tokens=20, system=system, messages=USER)
        counted = await client.messages.count_tokens(model=MODEL, system="Be brief.", messages=USER)
    block = answer.content[0]
    assert block.type == "text"
    assert (block.text, answer.stop_reason, answer.stop_sequence) == ("Paris.", "end_turn", None)
    prompt = "system:Be brief.;user:What is the capital of France?;"
    assert bytes(worker.requests[0].prompt.data[::4]).decode() == prompt
    assert (answer.usage.input_tokens, answer.usage.cache_read_input_tokens) == (len(prompt) - 16, 16)
    assert answer.usage.output_tokens == 6
    assert counted.input_tokens == len(prompt)


async def test_a_stream_adds_up_to_the_message() -> None:
    worker = ScriptedWorker("w0", captured={Tier.GPU: 16}, stop_at=4)
    async with (
        http_running(worker) as http,
        http.anthropic() as client,
        client.messages.stream(model=MODEL, max_tokens=9, messages=USER) as stream,
    ):
        deltas = []
        async for text in stream.text_stream:
            deltas.append(text)
            worker.go.set()
        answer = await stream.get_final_message()
    block = answer.content[0]
    assert block.type == "text"
    assert len(deltas) > 1, "the output arrived in one piece"
    assert block.text == "".join(deltas)
    assert (answer.stop_reason, answer.usage.output_tokens, answer.usage.cache_read_input_tokens) == ("max_tokens", 9, 16)


@pytest.mark.parametrize("stream", [True, False])
async def test_tool_use_and_its_result(stream: bool) -> None:
    async with http_running(ScriptedWorker("w0", say=call_then_answer)) as http, http.anthropic() as client:
        asked: Any = {"model": MODEL, "max_tokens": 200, "tools": [TOOL]}
        messages: list[Any] = [{"role": "user", "content": "What do whales do all day?"}]
        if stream:
            async with client.messages.stream(messages=messages, **asked) as events:
                answer = await events.get_final_message()
        else:
            answer = await client.messages.create(messages=messages, **asked)
        text, use = answer.content
        assert answer.stop_reason == "tool_use"
        assert text.type == "text"
        assert text.text.strip() == "Let me look."
        assert use.type == "tool_use"
        assert (use.name, use.input) == ("search", {"q": "whales"})
        result = {"type": "tool_result", "tool_use_id": use.id, "content": [{"type": "text", "text": "They sing."}]}
        messages += [
            {"role": "assistant", "content": [block.model_dump(exclude_none=True) for block in answer.content]},
            {"role": "user", "content": [result]},
        ]
        answer = await client.messages.create(messages=messages, **asked)
        assert answer.content[0].type == "text"
        assert answer.content[0].text == "Whales sing."
        workflow = await http.workflow()
        await http.events(workflow, EventKind.TOOL_FINISHED)


async def test_what_a_model_has_thought_is_not_told_again() -> None:
    worker = ScriptedWorker("w0")
    thought: list[Any] = [
        {"type": "thinking", "thinking": "Hm.", "signature": "s"},
        {"type": "redacted_thinking", "data": "x"},
        {"type": "text", "text": "Whales."},
    ]
    async with http_running(worker) as http, http.anthropic() as client:
        for content in (thought, thought[-1:]):
            messages: Any = [*USER, {"role": "assistant", "content": content}, *USER]
            await client.messages.create(model=MODEL, max_tokens=1, messages=messages)
    with_thoughts, without = worker.requests
    assert with_thoughts.prompt == without.prompt


async def test_the_stop_sequence_is_told() -> None:
    """The worker, as ours do, generates the tokens of a stop string and leaves out their text."""
    worker = ScriptedWorker("w0", say=lambda prompt: "One. END")
    worker.unsaid = " END"
    async with http_running(worker) as http, http.anthropic() as client:
        answer = await client.messages.create(model=MODEL, max_tokens=20, messages=USER, stop_sequences=["x", " END"])
    assert (answer.stop_reason, answer.stop_sequence) == ("stop_sequence", " END")
    assert answer.content[0].type == "text"
    assert answer.content[0].text == "One."


@pytest.mark.parametrize(
    ("fields", "error", "kind", "named"),
    [
        ({"model": "claude"}, anthropic.NotFoundError, "not_found_error", "claude"),
        (
            {"thinking": {"type": "enabled", "budget_tokens": 1024}},
            anthropic.BadRequestError,
            "invalid_request_error",
            "thinking",
        ),
        (
            {"tool_choice": {"type": "tool", "name": "other"}, "tools": [TOOL]},
            anthropic.BadRequestError,
            "invalid_request_error",
            "tool_choice",
        ),
        ({"messages": [{"role": "robot", "content": ""}]}, anthropic.BadRequestError, "invalid_request_error", "role"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image", "source": {}}]}]},
            anthropic.BadRequestError,
            "invalid_request_error",
            "content",
        ),
        (
            {"messages": [{"role": "assistant", "content": [{"type": "redacted_thinking", "thinking": "x"}]}]},
            anthropic.BadRequestError,
            "invalid_request_error",
            "content",
        ),
        (
            {"messages": [{"role": "user", "content": [{"type": "text", "text": 5}]}]},
            anthropic.BadRequestError,
            "invalid_request_error",
            "messages[0].content[0].text: ",
        ),
        ({"extra_body": {"surprise": 1}}, anthropic.BadRequestError, "invalid_request_error", "surprise"),
    ],
)
async def test_errors_have_the_shape_of_the_api(fields: dict[str, Any], error: Any, kind: str, named: str) -> None:
    async with http_running(ScriptedWorker("w0")) as http, http.anthropic() as client:
        with pytest.raises(error) as caught:
            await client.messages.create(**{"model": MODEL, "max_tokens": 5, "messages": USER, **fields})
        assert caught.value.body["type"] == "error"
        assert caught.value.body["error"]["type"] == kind
        assert named in caught.value.body["error"]["message"]
        assert caught.value.request_id.startswith("req_")
