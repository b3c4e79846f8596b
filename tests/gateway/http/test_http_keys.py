"""API keys and TLS at the HTTP API, with the official clients."""

import json
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anthropic
import httpx2
import openai
import pytest

from tests.certificates import Authority
from tests.gateway.http.http_rig import MODEL, HttpRig, http_running
from tests.gateway.peers import ScriptedWorker
from tests.secured import BLUE, OPERATOR, RED, secured

MESSAGES: Any = [{"role": "user", "content": "Hello, is there anybody?"}]


@asynccontextmanager
async def keyed(folder: Path, **settings: str | bool) -> AsyncIterator[tuple[HttpRig, ScriptedWorker]]:
    with secured(folder, **settings):
        worker = ScriptedWorker("w0")
        async with http_running(worker) as rig:
            yield rig, worker


async def chat(rig: HttpRig, key: str, messages: Any = MESSAGES, **headers: str) -> openai.types.chat.ChatCompletion:
    async with rig.openai(**headers).copy(api_key=key) as client:
        return await client.chat.completions.create(model=MODEL, messages=messages, max_tokens=2)


async def test_openais_client_is_told_as_openai_would(tmp_path: Path) -> None:
    async with keyed(tmp_path) as (rig, worker):
        with pytest.raises(openai.AuthenticationError) as caught:
            await chat(rig, "x" * 30)
        assert caught.value.body == {
            "message": "the API key is not known here",
            "type": "invalid_request_error",
            "param": None,
            "code": "invalid_api_key",
        }
        assert caught.value.response.headers["www-authenticate"] == "Bearer"
        with pytest.raises(openai.PermissionDeniedError, match="another tenant than 'blue'"):
            await chat(rig, RED, **{"x-pbkv-tenant": "blue"})
        assert not worker.requests
        await chat(rig, RED)
        assert worker.requests[-1].tenant == "red"


async def test_anthropics_client_is_told_as_anthropic_would(tmp_path: Path) -> None:
    async with keyed(tmp_path) as (rig, worker):
        async with rig.anthropic().copy(api_key="x" * 30) as client:
            with pytest.raises(anthropic.AuthenticationError) as caught:
                await client.messages.create(model=MODEL, messages=MESSAGES, max_tokens=2)
            body: Any = caught.value.body
            assert body["type"] == "error"
            assert body["error"]["type"] == "authentication_error"
        async with rig.anthropic().copy(api_key=BLUE) as client:
            await client.messages.create(model=MODEL, messages=MESSAGES, max_tokens=2)
        assert [request.tenant for request in worker.requests] == ["blue"]


async def test_conversations_of_two_tenants_are_two_workflows(tmp_path: Path) -> None:
    async with keyed(tmp_path) as (rig, worker):
        said = (await chat(rig, RED)).choices[0].message.content or ""
        goes_on = [*MESSAGES, {"role": "assistant", "content": said}, {"role": "user", "content": "And then?"}]
        for key in (BLUE, RED):
            await chat(rig, key, goes_on)
        first, of_blue, of_red = (request.workflow_id for request in worker.requests)
        assert first == of_red != of_blue


async def test_a_tenant_can_neither_join_nor_end_anothers_workflow(tmp_path: Path) -> None:
    async with keyed(tmp_path) as (rig, worker):
        for key in (RED, BLUE, RED):
            await chat(rig, key, **{"x-pbkv-workflow": "same"})
        of_red, of_blue, again = (request.workflow_id for request in worker.requests)
        assert of_red == again != of_blue
        await chat(rig, BLUE, **{"x-pbkv-workflow": of_red})
        assert worker.requests[-1].workflow_id not in (of_red, of_blue)
        async with httpx2.AsyncClient(base_url=rig.url) as client:
            for name, key, status in (
                ("same", "", 401),
                ("same", RED, 200),
                ("same", RED, 404),
                (of_blue, RED, 404),
                (of_blue, BLUE, 200),
                ("same", OPERATOR, 404),
            ):
                answer = await client.delete(f"/v1/workflows/{name}", headers={"x-api-key": key})
                assert answer.status_code == status, (name, key)


async def test_without_keys_the_tenant_that_is_named_has_ids_of_its_own() -> None:
    worker = ScriptedWorker("w0")
    async with http_running(worker) as rig:
        for tenant in ("red", "blue", ""):
            await chat(rig, "none", **{"x-pbkv-workflow": "same", "x-pbkv-tenant": tenant})
        assert len({request.workflow_id for request in worker.requests}) == 3
        async with httpx2.AsyncClient(base_url=rig.url) as client:
            for tenant, status in (("red", 200), ("red", 404), ("blue", 200), ("", 200)):
                answer = await client.delete("/v1/workflows/same", headers={"x-pbkv-tenant": tenant})
                assert answer.status_code == status, tenant


@pytest.mark.parametrize("path", ["/v1/models", "/openapi.json"])
async def test_all_but_health_needs_a_key(tmp_path: Path, path: str) -> None:
    async with keyed(tmp_path) as (rig, _), httpx2.AsyncClient(base_url=rig.url) as client:
        assert (await client.get("/health")).status_code == 200
        assert (await client.get(path)).status_code == 401
        assert (await client.get(path, headers={"authorization": f"Bearer {OPERATOR}"})).status_code == 200


async def test_a_body_is_not_read_without_a_key(tmp_path: Path) -> None:
    async with keyed(tmp_path) as (rig, _), httpx2.AsyncClient(base_url=rig.url) as client:
        answer = await client.post(
            "/v1/chat/completions", content=b"{" * (1 << 20), headers={"content-type": "application/json"}
        )
        assert answer.status_code == 401
        assert answer.headers["connection"] == "close"
        assert json.loads(answer.content)["error"]["code"] == "invalid_api_key"


async def test_https(tmp_path: Path) -> None:
    own = Authority(tmp_path).sign("gateway")
    async with keyed(tmp_path, tls_certificate=own.certificate, tls_key=own.key, tls_ca=own.ca) as (rig, worker):
        trusts = ssl.create_default_context(cafile=own.ca)
        url = f"https://{rig.server.address}/v1"
        async with (
            httpx2.AsyncClient(verify=trusts) as http,
            openai.AsyncOpenAI(base_url=url, api_key=RED, max_retries=0, http_client=http) as client,
        ):
            stream = await client.chat.completions.create(model=MODEL, messages=MESSAGES, max_tokens=2, stream=True)
            assert [chunk async for chunk in stream]
        assert worker.requests[-1].tenant == "red"
        async with httpx2.AsyncClient() as client:
            with pytest.raises(httpx2.TransportError):
                await client.get(f"http://{rig.server.address}/health")
