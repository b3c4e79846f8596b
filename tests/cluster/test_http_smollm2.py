"""A real small language model over HTTP: what it says in turns, in streams and in tool calls makes sense to a reader."""

import json
import uuid
from collections.abc import Iterator
from typing import Any

import pytest
from openai import OpenAI

from pbkv_cluster.cluster.local import LocalCluster
from pbkv_cluster.core.config import load
from pbkv_cluster.gpu_worker.model.smollm2 import smollm2

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

WEATHER: Any = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Get the weather in a city",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}


@pytest.fixture(scope="module")
def client() -> Iterator[OpenAI]:
    flags = {
        "cluster.name": f"smollm2-{uuid.uuid4().hex[:8]}",
        "cluster.start_timeout_s": 600.0,
        "model.path": str(smollm2()),
        "model.self_test": False,
        "engine.device": "cpu",
        "engine.gpu_blocks": 400,
        "engine.host_blocks": 100,
        "gateway.port": 0,
        "gateway.http_port": 0,
        "gateway.http_model": "smollm2",
    }
    with (
        LocalCluster(load(flags=flags).config) as cluster,
        OpenAI(base_url=f"http://{cluster.http_address}/v1", api_key="none", timeout=300, max_retries=0) as client,
    ):
        yield client


def say(client: OpenAI, messages: list[Any], **fields: Any) -> str:
    """The text of a streamed answer."""
    asked: Any = {"model": "smollm2", "messages": messages, "max_tokens": 40, "temperature": 0, **fields}
    chunks: Any = client.chat.completions.create(**asked, stream=True)
    return "".join(choice.delta.content or "" for chunk in chunks for choice in chunk.choices)


def test_several_turns_make_sense(client: OpenAI) -> None:
    messages: list[Any] = [{"role": "user", "content": "What is the capital of France?"}]
    first = say(client, messages)
    assert "Paris" in first
    messages += [
        {"role": "assistant", "content": first},
        {"role": "user", "content": "And what is the capital of Germany?"},
    ]
    asked: Any = {"model": "smollm2", "messages": messages, "max_tokens": 40, "temperature": 0}
    answer = client.chat.completions.create(**asked)
    assert "Berlin" in (answer.choices[0].message.content or "")
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage is not None
    assert answer.usage.prompt_tokens_details is not None
    assert (answer.usage.prompt_tokens_details.cached_tokens or 0) >= 32, "the first turn is not computed again"
    assert say(client, messages) == answer.choices[0].message.content


@pytest.mark.parametrize("stream", [True, False])
def test_it_calls_a_tool_as_it_is_shown(client: OpenAI, stream: bool) -> None:
    """So small a model follows examples rather than instructions."""
    messages: list[Any] = []
    for city in ("Berlin", "Madrid", "Oslo"):
        function = {"name": "get_weather", "arguments": json.dumps({"city": city})}
        messages += [
            {"role": "user", "content": f"What is the weather in {city}?"},
            {"role": "assistant", "tool_calls": [{"id": f"call_{city}", "type": "function", "function": function}]},
        ]
    messages.append({"role": "user", "content": "What is the weather in Paris?"})
    asked: Any = {"model": "smollm2", "messages": messages, "max_tokens": 60, "temperature": 0, "tools": [WEATHER]}
    answer: Any = client.chat.completions.create(**asked, stream=stream)
    if stream:
        choices = [choice for chunk in answer for choice in chunk.choices]
        (call,) = [call for choice in choices for call in choice.delta.tool_calls or ()]
        text = "".join(choice.delta.content or "" for choice in choices)
        reason = choices[-1].finish_reason
    else:
        (call,) = answer.choices[0].message.tool_calls
        text, reason = answer.choices[0].message.content or "", answer.choices[0].finish_reason
    assert (call.function.name, json.loads(call.function.arguments)) == ("get_weather", {"city": "Paris"})
    assert (text, reason) == ("", "tool_calls")
