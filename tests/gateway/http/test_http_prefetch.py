"""/v1/prefetch: what gRPC's `Prefetch` does, over HTTP, by a real worker with a small model."""

from pathlib import Path
from typing import Any

import openai
import pytest

from pbkv_cluster.client import AsyncClient
from pbkv_cluster.gateway.http.server import HttpServer
from tests.gateway.test_block_requests import caches, fill

TEXT = "a" * 65  # four blocks and a token


async def test_a_prompt_and_a_workflow_are_loaded_and_leased_over_http(tmp_path: Path) -> None:
    async with caches(tmp_path) as (rig, _), AsyncClient(rig.address) as client:
        server = HttpServer(rig.config, rig.gateway)
        await server.start("127.0.0.1", 0)
        try:
            url = f"http://{server.address}/v1/prefetch"
            async with openai.AsyncOpenAI(base_url=f"http://{server.address}/v1", api_key="none", max_retries=0) as http:
                workflow = await client.start_workflow()
                await workflow.run(agent="planner", prompt=TEXT, max_tokens=1)
                await fill(client)
                body = {"prompt": TEXT, "within_s": 60.0}
                done: Any = await http.post(url, body=body, cast_to=object)
                assert (done["loaded_tokens"], done["resident_tokens"], done["leased_tokens"]) == (64, 64, 64)
                assert await client.release_blocks(done["lease_id"]) == 64
                headers = {"x-pbkv-workflow": workflow.id, "x-pbkv-agent": "planner"}
                own: Any = await http.post(url, body={}, cast_to=object, options={"headers": headers})
                assert (own["resident_tokens"], own["lease_id"]) == (64, "")
                both = {"prompt": "a", "messages": [{"role": "user", "content": "a"}]}
                for wrong in ({}, both, {"prompt": "a", "within_s": -1}):
                    with pytest.raises(openai.BadRequestError):
                        await http.post(url, body=wrong, cast_to=object)
                with pytest.raises(openai.NotFoundError):
                    await http.post(url, body={}, cast_to=object, options={"headers": {"x-pbkv-workflow": "unknown"}})
        finally:
            await server.stop()
