"""The HTTP API of a gateway that does not hold the workflow that a client names."""

from contextlib import AsyncExitStack

import openai
import pytest
from openai import AsyncOpenAI

from pbkv_cluster.gateway.http.server import HttpServer
from tests.gateway.http.http_rig import CONTEXT, KEY, MODEL
from tests.gateway.pair import pair
from tests.gateway.peers import ScriptedWorker

TOOLS = [{"type": "function", "function": {"name": "search", "parameters": {"type": "object", "properties": {}}}}]


def say(prompt: str) -> str:
    return f"Answer to {prompt.rpartition('user:')[2]}"


async def test_a_named_workflow_goes_on_at_another_gateway_and_outlives_its_holder() -> None:
    worker = ScriptedWorker("w0", say=say, context=CONTEXT)
    async with pair(worker, http_model=MODEL) as both, AsyncExitStack() as stack:
        clients, servers = [], []
        for side in (both.a, both.b):
            server = HttpServer(both.rig.config, side.gateway)
            stack.push_async_callback(server.stop)
            servers.append(server)
            address = await server.start("127.0.0.1", 0)
            headers = {"x-pbkv-workflow": "mine", "x-pbkv-agent": "writer"}
            client = AsyncOpenAI(base_url=f"http://{address}/v1", api_key=KEY, max_retries=0, default_headers=headers)
            clients.append(await stack.enter_async_context(client))

        async def ask(client: AsyncOpenAI, text: str) -> tuple[str, str]:
            answer = await client.chat.completions.with_raw_response.create(
                model=MODEL,
                messages=[{"role": "user", "content": text}],
                tools=TOOLS,  # type: ignore[arg-type]  # a plain dict, as applications write it
                max_tokens=60,
            )
            return answer.headers["x-pbkv-step"], answer.parse().choices[0].message.content or ""

        found = [await ask(clients[number % 2], f"question {number}") for number in range(4)]
        assert found == [(str(number), f"Answer to question {number};") for number in range(4)]
        assert both.a.holds("mine")
        await servers[0].stop()
        await both.a.gateway.stop()
        with pytest.raises(openai.APIConnectionError):  # such clients try again by themselves, unless they are told not to
            await ask(clients[0], "is anybody there?")
        assert (await ask(clients[1], "one more"))[1] == "Answer to one more;"
        assert both.b.holds("mine")
