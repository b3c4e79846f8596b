"""A request beyond a limit gets 429 in the shape of its API, with the limit's name and a time to retry."""

import asyncio
from typing import Any

import anthropic
import openai
import pytest

from tests.gateway.http.http_rig import MODEL, http_running
from tests.gateway.peers import ScriptedWorker
from tests.gateway.rig import until

ASKED: dict[str, Any] = {"model": MODEL, "messages": [{"role": "user", "content": "well?"}], "max_tokens": 3}
PROBLEM = "tenant 'team' has 1 steps in flight already (limits.tenant_steps)"


@pytest.mark.parametrize("stream", [False, True])
async def test_the_shapes_of_openai_and_anthropic(stream: bool) -> None:
    worker = ScriptedWorker("w0", stop_at=1)
    tenant = {"x-pbkv-tenant": "team"}
    async with (
        http_running(worker, limits={"tenant_steps": 1}) as http,
        http.openai(**tenant) as client,
        http.anthropic(**tenant) as claude,
        http.openai() as another,
    ):
        first = asyncio.create_task(client.chat.completions.create(**ASKED))
        await worker.stopped.wait()
        with pytest.raises(openai.RateLimitError) as of_openai:
            await client.chat.completions.create(**ASKED, stream=stream)
        body: Any = of_openai.value.body
        assert body == {"message": PROBLEM, "type": "rate_limit_error", "param": None, "code": "rate_limit_exceeded"}
        assert int(of_openai.value.response.headers["retry-after"]) >= 1
        with pytest.raises(anthropic.RateLimitError) as of_anthropic:
            await claude.messages.create(**ASKED, stream=stream)
        answer: Any = of_anthropic.value.body
        assert answer["error"] == {"type": "rate_limit_error", "message": PROBLEM}
        assert int(of_anthropic.value.response.headers["retry-after"]) >= 1
        other = asyncio.create_task(another.chat.completions.create(**ASKED))
        await until(lambda: len(worker.requests) == 2, "another tenant's step is let in")
        worker.go.set()
        assert (await first).choices[0].finish_reason == "length"
        assert (await other).choices[0].finish_reason == "length"


async def test_a_request_for_more_answers_than_the_limit_allows_is_refused_as_a_whole() -> None:
    worker = ScriptedWorker("w0")
    async with http_running(worker, limits={"workflow_steps": 2}) as http, http.openai() as client:
        with pytest.raises(openai.RateLimitError, match=r"limits\.workflow_steps"):
            await client.chat.completions.create(**ASKED, n=3)
        assert len(http.rig.gateway.submission.admission) == 0
        assert len((await client.chat.completions.create(**ASKED, n=2)).choices) == 2


async def test_a_step_ends_when_its_client_no_longer_waits() -> None:
    worker = ScriptedWorker("w0", stop_at=0)
    async with http_running(worker) as http, http.openai(**{"x-pbkv-timeout": "0.3"}) as client:
        with pytest.raises(openai.InternalServerError) as caught:
            await client.chat.completions.create(**ASKED)
        assert (caught.value.status_code, caught.value.code) == (504, "timeout")
        worker.stop_at = 1
        with pytest.raises(openai.APIError, match="has not ended within"):
            async for _ in await client.chat.completions.create(**ASKED, stream=True):
                pass
        await until(lambda: worker.cancelled == len(worker.requests), "the worker drops what has come to it")
        assert len(http.rig.gateway.submission.admission) == 0
        assert (await http.rig.status()).decisions["step_expired"] == 2


@pytest.mark.parametrize("seconds", ["soon", "0", "-1", "nan", "inf", "1e9", "1_0"])
async def test_a_time_out_must_be_seconds(seconds: str) -> None:
    async with http_running(ScriptedWorker("w0")) as http, http.openai(**{"x-pbkv-timeout": seconds}) as client:
        with pytest.raises(openai.BadRequestError, match="must be seconds") as caught:
            await client.chat.completions.create(**ASKED)
        assert caught.value.param == "x-pbkv-timeout"
