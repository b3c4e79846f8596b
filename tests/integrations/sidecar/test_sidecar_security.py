"""A sidecar with the API keys and certificates of `security`, and engines that ask for a key of their own."""

import json
import ssl
from pathlib import Path
from typing import Any

import pytest
import yaml
from httpx2 import AsyncClient

from pbkv_cluster.core.config import PredictorConfig
from pbkv_cluster.core.errors import StartupError
from pbkv_cluster.predictor_service.server import PredictorServer
from pbkv_cluster.store.cluster_index.redis_server import free_port
from tests.certificates import Authority
from tests.integrations.sidecar.scripted_engine import ScriptedEngine
from tests.integrations.sidecar.sidecar_rig import sidecar
from tests.integrations.sidecar.test_sidecar_command import command, serving
from tests.polling import eventually
from tests.secured import BLUE, OPERATOR, RED, secured


def bearer(key: str, **more: str) -> dict[str, str]:
    return {"authorization": f"Bearer {key}", **more}


async def test_clients_need_a_key_and_engines_do_not_see_it(tmp_path: Path) -> None:
    engine = ScriptedEngine()
    with secured(tmp_path):
        async with sidecar(engine, engine={"hints": ["cache_salt"]}) as rig:
            for headers in ({}, bearer("nobody's")):
                refused = await rig.chat("Hello?", headers=headers)
                assert (refused.status_code, refused.json()["error"]["code"]) == (401, "invalid_api_key")
                assert (await rig.http.get(f"{rig.url}/v1/models", headers=headers)).status_code == 401
            assert not engine.raw
            for headers in (bearer(RED), {"x-api-key": RED}):
                assert (await rig.chat("Hello?", headers=headers)).status_code == 200
            assert (await rig.chat("Hello?", headers=bearer(RED, **{"x-pbkv-tenant": "blue"}))).status_code == 403
            assert (await rig.chat("Hello?", headers=bearer(OPERATOR, **{"x-pbkv-tenant": "blue"}))).status_code == 200
            assert [body["cache_salt"] for body in engine.bodies] == ["red", "red", "blue"]
            assert not any({"authorization", "x-api-key"} & headers.keys() for _, _, headers, _ in engine.raw)


@pytest.mark.parametrize("field", ["cache_salt", "kv_transfer_params"])
async def test_a_tenant_cannot_name_anothers_blocks(tmp_path: Path, field: str) -> None:
    engine = ScriptedEngine()
    named: dict[str, Any] = {field: {"pbkv": {"workflow": "w", "final": True}} if field == "kv_transfer_params" else "blue"}
    with secured(tmp_path):
        async with sidecar(engine, engine={"hints": ["cache_salt", "kv_transfer_params"]}) as rig:
            refused = await rig.chat("Hello?", headers=bearer(RED), **named)
            assert (refused.status_code, field in refused.json()["error"]["message"]) == (403, True)
            assert (await rig.chat("Hello?", headers=bearer(OPERATOR), **named)).status_code == 200
    assert [body[field] for body in engine.bodies] == [named[field]]


async def test_a_tenant_cannot_touch_anothers_workflow_nor_see_what_operators_do(tmp_path: Path) -> None:
    with secured(tmp_path):
        async with sidecar(ScriptedEngine()) as rig:
            named = {"x-pbkv-workflow": "w"}
            assert (await rig.chat("Hello?", headers=bearer(RED, **named))).status_code == 200
            workflow = f"{rig.url}/v1/workflows/w"
            assert (await rig.http.delete(workflow, headers=bearer(BLUE))).status_code == 404
            assert (await rig.http.delete(workflow, headers=bearer(RED))).status_code == 200
            for path in ("/metrics", "/pbkv/status"):
                url = f"{rig.url}{path}"
                statuses = [(await rig.http.get(url, headers=headers)).status_code for headers in ({}, bearer(RED))]
                assert statuses == [401, 403]
                assert (await rig.http.get(url, headers=bearer(OPERATOR))).status_code == 200
            assert (await rig.http.get(f"{rig.url}/health")).status_code == 200


async def test_an_engine_is_shown_its_own_key(tmp_path: Path) -> None:
    file = tmp_path / "engine.key"
    file.write_text("key-of-the-engine\n")
    engine = ScriptedEngine()
    async with sidecar(engine, engine={"key_file": str(file)}) as rig:
        assert (await rig.chat("Hello?", headers=bearer("the client's"))).status_code == 200
    keys = [headers["authorization"] for _, target, headers, _ in engine.raw if target.startswith("/v1/")]
    assert keys == ["Bearer key-of-the-engine"]


@pytest.mark.parametrize("content", [None, "\n", "two\nlines"])
async def test_a_file_without_a_key_is_named(tmp_path: Path, content: str | None) -> None:
    file = tmp_path / "engine.key"
    if content is not None:
        file.write_text(content)
    with pytest.raises(StartupError, match=r"^sidecar\.engines\.key_file: .*engine\.key"):
        async with sidecar("http://127.0.0.1:1", engine={"key_file": str(file)}):
            pass


async def test_it_speaks_tls_to_clients_and_to_the_predictor_of_a_secured_cluster(tmp_path: Path) -> None:
    own = Authority(tmp_path).sign("member")
    engine, port = ScriptedEngine(), free_port("127.0.0.1")
    await engine.start()
    with secured(tmp_path, tls_certificate=own.certificate, tls_key=own.key, tls_ca=own.ca) as security:
        predictor = PredictorServer(PredictorConfig())
        await predictor.start("127.0.0.1", 0)
        try:
            file = tmp_path / "sidecar.yaml"
            file.write_text(yaml.safe_dump({"sidecar": {"engines": [{"url": engine.url}]}, "security": security.model_dump()}))
            given = ("--config", str(file), "--port", str(port), "--api-key", OPERATOR)
            async with serving(*given, "--predictor", predictor.address) as lines:
                assert lines[0].startswith(f"sidecar  https://127.0.0.1:{port}/v1 ")
                body = {"model": "m", "messages": [{"role": "user", "content": "A question?"}]}
                trusted = ssl.create_default_context(cafile=own.ca)
                async with AsyncClient(timeout=20.0, verify=trusted) as http:
                    url = f"https://127.0.0.1:{port}"
                    chat = f"{url}/v1/chat/completions"
                    assert (await http.post(chat, json=body)).status_code == 401
                    assert (await http.post(chat, json=body, headers=bearer(RED))).status_code == 200

                    async def is_forecast() -> bool:
                        told = (await http.get(f"{url}/pbkv/status", headers=bearer(OPERATOR))).json()
                        return bool(told["forecasts"])

                    await eventually(is_forecast)
                status, out, _ = await command(*given, "--status", "--json", "-")
                assert (status, json.loads(out)["steps"]) == (0, 1)
        finally:
            await predictor.stop()
            await engine.stop()
