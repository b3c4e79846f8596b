"""Chat completions with OpenAI's own client: answers, streams, errors, and what becomes of them in the gateway."""

import asyncio
from typing import Any

import openai
import pytest

from pbkv_cluster.core.usage import Tier
from pbkv_cluster.core.workflow.events import EventKind
from pbkv_cluster.core.workflow.tenant_ids import of_tenant
from tests.gateway.http.http_rig import MODEL, http_running
from tests.gateway.peers import ScriptedWorker
from tests.gateway.rig import until

USER: list[Any] = [{"role": "user", "content": "What is the capital of France?"}]


def letters(seed: int, count: int) -> str:
    return "".join(chr(97 + (seed + 7 * position) % 26) for position in range(count))


async def test_an_answer_and_its_usage() -> None:
    worker = ScriptedWorker("w0", captured={Tier.GPU: 16})
    async with http_running(worker) as http, http.openai() as client:
        answer = await client.chat.completions.create(model=MODEL, messages=USER, max_tokens=5, seed=3, temperature=0.5)
    assert answer.choices[0].message.content == letters(3, 5)
    assert answer.choices[0].finish_reason == "length"
    assert answer.usage is not None
    prompt = len("user:What is the capital of France?;")
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens, answer.usage.total_tokens) == (prompt, 5, prompt + 5)
    assert answer.usage.prompt_tokens_details is not None
    assert answer.usage.prompt_tokens_details.cached_tokens == 16
    (request,) = worker.requests
    assert (request.sampling.seed, request.sampling.temperature, request.sampling.top_p) == (3, 0.5, 1.0)


async def test_defaults_are_those_of_the_api() -> None:
    worker = ScriptedWorker("w0", say=lambda prompt: "Paris.")
    async with http_running(worker) as http, http.openai() as client:
        answer = await client.chat.completions.create(model=MODEL, messages=USER)
    assert (answer.choices[0].message.content, answer.choices[0].finish_reason) == ("Paris.", "stop")
    (request,) = worker.requests
    assert request.sampling.temperature == 1.0
    assert request.sampling.max_tokens == worker.context - len("user:What is the capital of France?;")


@pytest.mark.parametrize("with_usage", [True, False])
async def test_a_stream_adds_up_to_the_answer(with_usage: bool) -> None:
    options: Any = {"stream_options": {"include_usage": True}} if with_usage else {}
    worker = ScriptedWorker("w0", stop_at=4)
    async with http_running(worker) as http, http.openai() as client:
        stream = await client.chat.completions.create(model=MODEL, messages=USER, max_tokens=9, seed=4, stream=True, **options)
        chunks = []
        async for chunk in stream:
            chunks.append(chunk)
            if any(choice.delta.content for choice in chunk.choices):
                worker.go.set()
    deltas = [choice.delta.content or "" for chunk in chunks for choice in chunk.choices]
    assert "".join(deltas) == letters(4, 9)
    assert len([delta for delta in deltas if delta]) > 1, "the output arrived in one piece"
    assert [choice.finish_reason for chunk in chunks for choice in chunk.choices if choice.finish_reason] == ["length"]
    assert {chunk.id for chunk in chunks} == {chunks[0].id}
    usages = [chunk.usage for chunk in chunks if chunk.usage is not None]
    assert [usage.completion_tokens for usage in usages] == ([9] if with_usage else [])


@pytest.mark.parametrize("stream", [True, False])
async def test_several_choices_are_several_steps(stream: bool) -> None:
    worker = ScriptedWorker("w0")
    async with http_running(worker) as http, http.openai() as client:
        asked: Any = {"model": MODEL, "messages": USER, "max_tokens": 4, "seed": 2, "n": 3, "stream": stream}
        answer: Any = await client.chat.completions.create(**asked)
        texts = ["", "", ""]
        if stream:
            async for chunk in answer:
                for choice in chunk.choices:
                    texts[choice.index] += choice.delta.content or ""
        else:
            for choice in answer.choices:
                texts[choice.index] = choice.message.content
            assert answer.usage.completion_tokens == 12
    assert texts == [letters(2, 4), letters(3, 4), letters(4, 4)]
    assert len({request.workflow_id for request in worker.requests}) == 1


async def test_stop_strings_and_parts_reach_the_engine() -> None:
    worker = ScriptedWorker("w0")
    parts: list[Any] = [{"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}]
    async with http_running(worker) as http, http.openai() as client:
        await client.chat.completions.create(model=MODEL, messages=parts, max_tokens=1, stop="END")
        await client.chat.completions.create(model=MODEL, messages=USER, max_completion_tokens=2, stop=["x", "y"])
    assert [list(request.sampling.stop) for request in worker.requests] == [["END"], ["x", "y"]]
    assert bytes(worker.requests[0].prompt.data[::4]) == b"user:a\nb;"
    assert worker.requests[1].sampling.max_tokens == 2


@pytest.mark.parametrize(
    ("fields", "param", "code"),
    [
        ({"top_logprobs": 2}, "top_logprobs", "invalid_value"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs", "invalid_value"),
        ({"response_format": {"type": "json_object"}}, "response_format", "unsupported_parameter"),
        ({"frequency_penalty": 0.5}, "frequency_penalty", "unsupported_parameter"),
        ({"stream_options": {"continuous_usage_stats": 0}}, "stream_options.continuous_usage_stats", "unsupported_parameter"),
        ({"tool_choice": "required"}, "tool_choice", "invalid_value"),
        ({"tool_choice": "any"}, "tool_choice", "unsupported_value"),
        ({"temperature": 7}, "temperature", "invalid_value"),
        ({"max_tokens": 0}, "max_tokens", "invalid_value"),
        ({"max_tokens": "5"}, "max_tokens", "invalid_value"),
        ({"n": 17}, "n", "invalid_value"),
        ({"stop": [""]}, "stop[0]", "invalid_value"),
        ({"messages": []}, "messages", "invalid_value"),
        ({"messages": [{"role": "robot", "content": "x"}]}, "messages[0].role", "invalid_value"),
        ({"messages": [{"role": "user"}]}, "messages[0].content", "invalid_value"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]},
            "messages[0].content[0].type",
            "invalid_value",
        ),
        (
            {"messages": [{"role": "user", "content": [{"type": "text", "text": 5}]}]},
            "messages[0].content[0].text",
            "invalid_value",
        ),
        (
            {"messages": [{"role": "assistant", "tool_calls": [{"id": "1", "type": "function", "function": {"name": "f"}}]}]},
            "messages[0].tool_calls[0].function.arguments",
            "missing_required_parameter",
        ),
        ({"messages": [{"role": "user", "content": "x" * 20_000}]}, "messages", "context_length_exceeded"),
        ({"extra_body": {"best_of_all": 3}}, "best_of_all", "unknown_parameter"),
        ({"extra_headers": {"x-pbkv-agent": "x" * 300}}, "x-pbkv-agent", "invalid_value"),
    ],
)
@pytest.mark.parametrize("stream", [True, False])
async def test_a_wrong_request_is_refused_by_name(fields: dict[str, Any], param: str, code: str, stream: bool) -> None:
    async with http_running(ScriptedWorker("w0")) as http, http.openai() as client:
        with pytest.raises(openai.BadRequestError) as caught:
            await client.chat.completions.create(**{"model": MODEL, "messages": USER, "stream": stream, **fields})
        assert (caught.value.param, caught.value.code) == (param, code), caught.value
        assert caught.value.type == "invalid_request_error"
        assert param.partition("[")[0] in caught.value.message
        assert (await http.rig.status()).running_steps == 0


async def test_values_that_change_nothing_are_accepted() -> None:
    neutral: Any = {
        "logprobs": False,
        "frequency_penalty": 0,
        "presence_penalty": 0.0,
        "response_format": {"type": "text"},
        "logit_bias": {},
        "stream_options": {"continuous_usage_stats": False},
        "user": "u",
        "store": False,
        "parallel_tool_calls": True,
        "tool_choice": "auto",
    }
    async with http_running(ScriptedWorker("w0")) as http, http.openai() as client:
        answer = await client.chat.completions.create(model=MODEL, messages=USER, max_tokens=1, **neutral)
    assert answer.choices[0].message.content


async def test_another_model_is_not_found() -> None:
    async with http_running(ScriptedWorker("w0")) as http, http.openai() as client:
        with pytest.raises(openai.NotFoundError) as caught:
            await client.chat.completions.create(model="gpt-5", messages=USER)
        assert (caught.value.param, caught.value.code) == ("model", "model_not_found")
        assert [model.id async for model in client.models.list()] == [MODEL]
        assert (await client.models.retrieve(MODEL)).id == MODEL
        with pytest.raises(openai.NotFoundError):
            await client.models.retrieve("gpt-5")


async def test_overload_is_told_with_a_time_to_retry() -> None:
    worker = ScriptedWorker("w0", stop_at=1)
    async with http_running(worker, max_steps=1) as http, http.openai() as client:
        asked: Any = {"model": MODEL, "messages": USER, "max_tokens": 3}
        first = asyncio.create_task(client.chat.completions.create(**asked))
        await worker.stopped.wait()
        with pytest.raises(openai.RateLimitError) as caught:
            await client.chat.completions.create(**asked)
        assert int(caught.value.response.headers["retry-after"]) >= 1
        assert caught.value.type == "rate_limit_error"
        worker.go.set()
        assert (await first).choices[0].message.content


@pytest.mark.parametrize("stream", [True, False])
async def test_a_client_that_goes_away_frees_its_step(stream: bool) -> None:
    worker = ScriptedWorker("w0", stop_at=1)
    async with http_running(worker) as http, http.openai() as client:
        asked: Any = {"model": MODEL, "messages": USER, "max_tokens": 3, "stream": stream}
        if stream:
            answer: Any = await client.chat.completions.create(**asked)
            await worker.stopped.wait()
            await answer.close()
        else:
            task = asyncio.create_task(client.chat.completions.create(**asked))
            await worker.stopped.wait()
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        await until(lambda: worker.cancelled == 1, "the worker's stream is cancelled")
        assert (await http.rig.status()).running_steps == 0


async def test_an_error_after_the_first_token_ends_the_stream() -> None:
    worker = ScriptedWorker("w0", stop_at=1, end_early=True)
    async with http_running(worker, retry_limit=0) as http, http.openai() as client:
        stream = await client.chat.completions.create(model=MODEL, messages=USER, max_tokens=3, seed=0, stream=True)
        with pytest.raises(openai.APIError, match="worker"):
            async for _ in stream:
                pass


async def test_headers_name_workflow_agent_call_site_and_workload() -> None:
    worker = ScriptedWorker("w0")
    named = {
        "x-pbkv-workflow": "trip",
        "x-pbkv-agent": "planner",
        "x-pbkv-call-site": "draft",
        "x-pbkv-workload": "trips",
        "x-pbkv-tenant": "acme",
    }
    async with http_running(worker) as http, http.openai() as client:
        raw = await client.chat.completions.with_raw_response.create(
            model=MODEL, messages=USER, max_tokens=1, extra_headers=named
        )
        assert raw.headers["x-pbkv-workflow"] == of_tenant("trip", "acme")
        assert raw.headers["x-pbkv-agent"] == "planner"
        assert raw.headers["x-pbkv-step"] == "0"
        (started,) = await http.events(of_tenant("trip", "acme"), EventKind.STEP_STARTED)
        assert (started.agent, started.call_site, started.workload) == ("planner", "draft", "trips")
        assert worker.requests[0].tenant == "acme"


async def test_metadata_names_them_too_and_hints_set_the_priority() -> None:
    worker = ScriptedWorker("w0")
    async with http_running(worker) as http, http.openai() as client:
        raw = await client.chat.completions.with_raw_response.create(
            model=MODEL,
            messages=USER,
            max_tokens=1,
            metadata={"workflow": "trip", "agent": "plänner\n", "call_site": "draft"},
            extra_body={"nvext": {"agent_hints": {"priority": 5, "osl": 100}}},
        )
        assert raw.headers["x-pbkv-agent"] == "pl%C3%A4nner%0A"
        (started,) = await http.events("trip", EventKind.STEP_STARTED)
    assert (started.agent, started.call_site) == ("plänner\n", "draft")
    assert worker.requests[0].priority == 5
