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
