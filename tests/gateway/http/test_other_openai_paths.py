"""Completions, responses, tokens and health, with OpenAI's own client."""

import asyncio
import json
from typing import Any

import openai
import pytest
from openai import AsyncOpenAI

from pbkv_cluster.core.usage import Tier
from pbkv_cluster.core.workflow.events import EventKind
from tests.gateway.http.http_rig import CONTEXT, MODEL, http_running
from tests.gateway.http.test_workflow_recognition import call_then_answer
from tests.gateway.peers import ScriptedWorker
from tests.gateway.rig import PATIENCE_S, codec

FUNCTION: Any = {"type": "function", "name": "search", "parameters": {"type": "object", "properties": {"q": {}}}}


def letters(seed: int, count: int) -> str:
    return "".join(chr(97 + (seed + 7 * position) % 26) for position in range(count))


@pytest.mark.parametrize("prompt", ["Once upon a time", list(b"Once upon a time"), ["Once upon a time"]])
async def test_a_completion_goes_on_with_text_or_tokens(prompt: Any) -> None:
    worker = ScriptedWorker("w0", captured={Tier.GPU: 16})
    async with http_running(worker) as http, http.openai() as client:
        answer = await client.completions.create(model=MODEL, prompt=prompt, max_tokens=5, seed=1)
        stream = await client.completions.create(
            model=MODEL, prompt=prompt, max_tokens=5, seed=1, stream=True, stream_options={"include_usage": True}
        )
        chunks = [chunk async for chunk in stream]
    assert (answer.choices[0].text, answer.choices[0].finish_reason) == (letters(1, 5), "length")
    assert answer.usage is not None
    assert answer.usage.prompt_tokens_details is not None
    assert (answer.usage.prompt_tokens, answer.usage.prompt_tokens_details.cached_tokens) == (16, 16)
    assert "".join(choice.text for chunk in chunks for choice in chunk.choices) == letters(1, 5)
    assert chunks[-1].usage == answer.usage
    assert {bytes(request.prompt.data) for request in worker.requests} == {codec().encode("Once upon a time")}


async def test_completions_have_defaults_of_their_own_and_continue_one_another() -> None:
    worker = ScriptedWorker("w0")
    text = "It was a dark and stormy night; the rain fell in torrents, except at occasional intervals. "
    async with http_running(worker) as http, http.openai() as client:
        workflows = []
        for _ in range(3):
            raw = await client.completions.with_raw_response.create(model=MODEL, prompt=text)
            workflows.append(raw.headers["x-pbkv-workflow"])
            text += (
                raw.parse().choices[0].text + " And then it went on and on, for hours, until the morning came, grey and cold."
            )
    assert len(set(workflows)) == 1
    assert {request.sampling.max_tokens for request in worker.requests} == {16}


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"prompt": ["a", "b"]}, "prompt"),
        ({"prompt": []}, "prompt"),
        ({"prompt": [70_000]}, "prompt"),
        ({"prompt": [-1]}, "prompt[0]"),
        ({"prompt": ""}, "prompt"),
        ({"logprobs": 21}, "logprobs"),
        ({"echo": True}, "echo"),
        ({"suffix": "x"}, "suffix"),
    ],
)
async def test_a_wrong_completion_is_refused_by_name(fields: dict[str, Any], param: str) -> None:
    async with http_running(ScriptedWorker("w0")) as http, http.openai() as client:
        with pytest.raises(openai.BadRequestError) as caught:
            await client.completions.create(**{"model": MODEL, "prompt": "a", **fields})
        assert caught.value.param == param, caught.value


async def test_a_response_and_its_usage() -> None:
    worker = ScriptedWorker("w0", say=lambda prompt: "Paris.", captured={Tier.HOST: 16})
    async with http_running(worker) as http, http.openai() as client:
        answer = await client.responses.create(
            model=MODEL, instructions="Be brief.", input="What is the capital of France?", max_output_tokens=20
        )
    assert (answer.output_text, answer.status) == ("Paris.", "completed")
    assert answer.usage is not None
    assert (answer.usage.input_tokens_details.cached_tokens, answer.usage.output_tokens) == (16, 6)
    assert bytes(worker.requests[0].prompt.data[::4]) == b"system:Be brief.;user:What is the capital of France?;"


async def respond(client: AsyncOpenAI, stream: bool, **fields: Any) -> tuple[Any, list[Any]]:
    """A response, and its events if it was streamed."""
    answer: Any = await client.responses.create(**{"model": MODEL, "max_output_tokens": 200, "stream": stream, **fields})
    if not stream:
        return answer, []
    events = [event async for event in answer]
    return events[-1].response, events


@pytest.mark.parametrize("stream", [True, False])
async def test_function_calls_of_responses(stream: bool) -> None:
    async with http_running(ScriptedWorker("w0", say=call_then_answer)) as http, http.openai() as client:
        said: list[Any] = [{"role": "user", "content": "What do whales do all day?"}]
        answer, events = await respond(client, stream, input=said, tools=[FUNCTION])
        message, call = answer.output
        assert message.content[0].text.strip() == "Let me look."
        assert (call.type, call.name, json.loads(call.arguments)) == ("function_call", "search", {"q": "whales"})
        if stream:
            assert [event.sequence_number for event in events] == list(range(len(events)))
            deltas = "".join(event.delta for event in events if event.type == "response.output_text.delta")
            assert deltas.strip() == "Let me look."
            done = [event.item for event in events if event.type == "response.output_item.done"]
            assert [item.id for item in done] == [item.id for item in answer.output]
        said += [item.model_dump(exclude_none=True) for item in answer.output]
        said.append({"type": "function_call_output", "call_id": call.call_id, "output": "They sing."})
        answer, _ = await respond(client, stream, input=said, tools=[FUNCTION])
        assert answer.output_text == "Whales sing."
        workflow = await http.workflow()
        kinds = [event.kind for event in await http.events(workflow, *EventKind, least=8)]
        assert kinds.index(EventKind.TOOL_STARTED) < kinds.index(EventKind.TOOL_FINISHED)


@pytest.mark.parametrize("stream", [True, False])
async def test_a_response_that_is_cut_says_so(stream: bool) -> None:
    async with http_running(ScriptedWorker("w0")) as http, http.openai() as client:
        answer, _ = await respond(client, stream, input="Tell me all.", max_output_tokens=3)
    assert (answer.status, answer.incomplete_details.reason) == ("incomplete", "max_output_tokens")
    assert [item.status for item in answer.output] == ["incomplete"]
    assert len(answer.output_text) == 3


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"previous_response_id": "resp_1"}, "previous_response_id"),
        ({"conversation": "c"}, "conversation"),
        ({"background": True}, "background"),
        ({"tools": [{"type": "web_search"}]}, "tools[0]"),
        ({"text": {"format": {"type": "json_object"}}}, "text"),
        ({"tool_choice": {"type": "function", "name": "other"}, "tools": [FUNCTION]}, "tool_choice"),
        ({"input": [{"type": "file_search_call"}]}, "input[0]"),
        ({"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "x"}]}]}, "input[0].content[0].type"),
        ({"input": [{"type": "message", "role": "robot", "content": "x"}]}, "input[0].role"),
        ({"input": [{"type": "function_call", "name": "f", "arguments": "{}"}]}, "input[0].call_id"),
        ({"input": []}, "input"),
    ],
)
async def test_a_wrong_response_is_refused_by_name(fields: dict[str, Any], param: str) -> None:
    async with http_running(ScriptedWorker("w0")) as http, http.openai() as client:
        with pytest.raises(openai.BadRequestError) as caught:
            await client.responses.create(**{"model": MODEL, "input": "a", **fields})
        assert (caught.value.param or "").startswith(param), caught.value


async def test_tokens_of_prompts_and_conversations() -> None:
    async with http_running(ScriptedWorker("w0")) as http, http.openai() as client:
        url = f"{http.url}/tokenize"
        text: Any = await client.post(url, body={"prompt": "abc"}, cast_to=object)
        assert text == {"count": 3, "max_model_len": CONTEXT, "tokens": [97, 98, 99]}
        chat: Any = await client.post(url, body={"messages": [{"role": "user", "content": "hi"}]}, cast_to=object)
        assert bytes(chat["tokens"]) == b"user:hi;"
        for wrong in ({}, {"prompt": "a", "messages": [{"role": "user", "content": "hi"}]}, {"prompt": "x" * CONTEXT}):
            with pytest.raises(openai.BadRequestError):
                await client.post(url, body=wrong, cast_to=object)


async def test_tokens_are_counted_as_steps_are_let_in() -> None:
    worker = ScriptedWorker("w0", stop_at=0)
    async with http_running(worker, max_steps=1) as http, http.openai() as client:
        asking = asyncio.ensure_future(client.completions.create(model=MODEL, prompt="a", max_tokens=2))
        await asyncio.wait_for(worker.stopped.wait(), PATIENCE_S)
        for path, body in (
            ("/tokenize", {"prompt": "abc"}),
            ("/v1/messages/count_tokens", {"model": MODEL, "messages": [{"role": "user", "content": "hi"}]}),
        ):
            with pytest.raises(openai.RateLimitError):
                await client.post(f"{http.url}{path}", body=body, cast_to=object, options={"max_retries": 0})
        worker.go.set()
        await asking


async def test_health_depends_on_workers() -> None:
    async with http_running(ScriptedWorker("w0")) as http, http.openai() as client:
        assert await client.get(f"{http.url}/health", cast_to=object) == {"status": "ok", "workers": 1}
    async with http_running() as http, http.openai() as client:
        with pytest.raises(openai.InternalServerError) as caught:
            await client.get(f"{http.url}/health", cast_to=object)
        assert caught.value.status_code == 503
