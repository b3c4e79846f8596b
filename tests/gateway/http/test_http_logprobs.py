"""Log-probabilities over HTTP, with OpenAI's client, and over gRPC, also when a step changes its worker."""

import json
from typing import Any

from pbkv_cluster.client import AsyncClient
from pbkv_cluster.core.workflow.logprobs import TokenLogprobs
from pbkv_cluster.gateway.http.generation.parts import ShownToken
from pbkv_cluster.gateway.http.openai.logprobs import chat_logprobs, completion_logprobs
from tests.gateway.http.http_rig import MODEL, http_running
from tests.gateway.peers import ScriptedWorker
from tests.gateway.rig import running

USER: Any = [{"role": "user", "content": "hello"}]
SAID = "h\u00e9!"
WANTED = [("h", 0.0), ("\ufffd", -0.5), ("\ufffd", -1.0), ("!", -1.5)]  # the second letter has two bytes, each a token
TOP = [("A", 0.0), ("B", -1.0)]


def worker() -> ScriptedWorker:
    return ScriptedWorker("w0", say=lambda prompt: SAID)


async def test_of_a_chat() -> None:
    answering = worker()
    async with http_running(answering) as http, http.openai() as client:
        asked: Any = {"model": MODEL, "messages": USER, "logprobs": True, "top_logprobs": 2}
        answer = await client.chat.completions.create(**asked)
        chunks = [chunk async for chunk in await client.chat.completions.create(**asked, stream=True)]
        plain = await client.chat.completions.create(model=MODEL, messages=USER)
    assert answer.choices[0].logprobs is not None
    found = answer.choices[0].logprobs.content
    assert found is not None
    assert [(each.token, each.logprob) for each in found] == WANTED
    assert [each.bytes for each in found] == [[104], None, None, [33]]
    assert [[(top.token, top.logprob) for top in each.top_logprobs] for each in found] == [TOP] * 4
    streamed = [
        each
        for chunk in chunks
        for choice in chunk.choices
        if choice.logprobs is not None
        for each in choice.logprobs.content or ()
    ]
    assert streamed == found
    assert plain.choices[0].logprobs is None
    assert not answering.requests[-1].sampling.HasField("top_logprobs")


async def test_of_a_completion() -> None:
    async with http_running(worker()) as http, http.openai() as client:
        answer = await client.completions.create(model=MODEL, prompt="hello", logprobs=2)
        stream = await client.completions.create(model=MODEL, prompt="hello", logprobs=2, stream=True, n=2)
        parts = [choice.logprobs for part in [part async for part in stream] for choice in part.choices if not choice.index]
    found = answer.choices[0].logprobs
    assert found is not None
    assert list(zip(found.tokens or (), found.token_logprobs or (), strict=True)) == WANTED
    assert found.text_offset == [0, 1, 2, 3]
    assert found.top_logprobs is not None
    assert found.top_logprobs[0] == {"h": 0.0, "A": 0.0, "B": -1.0}
    told = [part for part in parts if part is not None]
    assert [offset for part in told for offset in part.text_offset or ()] == [0, 1, 2, 3]
    assert [token for part in told for token in part.tokens or ()] == [token for token, _ in WANTED]


async def test_of_tokens_that_are_a_tool_call() -> None:
    call = '<tool_call>{"name": "f", "arguments": {}}</tool_call>'
    worker = ScriptedWorker("w0", say=lambda prompt: call)
    tools: Any = [{"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}}}}]
    async with http_running(worker, model={"tool_format": "hermes"}) as http, http.openai() as client:
        answer = await client.chat.completions.create(model=MODEL, messages=USER, tools=tools, logprobs=True)
    (choice,) = answer.choices
    assert choice.message.tool_calls
    assert choice.logprobs is not None
    assert "".join(each.token for each in choice.logprobs.content or ()) == call


async def test_a_step_that_changes_its_worker_tells_each_token_once() -> None:
    first = ScriptedWorker("w0", stop_at=2, end_early=True)
    second = ScriptedWorker("w1")
    async with running(first, second) as rig, AsyncClient(rig.address) as client:
        workflow = await client.start_workflow()
        result = await workflow.run(agent="a", prompt="hello", max_tokens=5, seed=1, top_logprobs=1)
    assert result.logprobs == tuple(TokenLogprobs(-position / 2, ((65, 0.0),)) for position in range(5))
    assert len(result.token_ids) == 5


def test_what_json_cannot_write_is_told_all_the_same() -> None:

    impossible = [ShownToken("a", float("-inf"), [("b", float("-inf"))])]
    for written in (chat_logprobs(impossible), completion_logprobs(impossible, 0)):
        assert json.dumps(written, allow_nan=False).count("-9999.0") >= 2
