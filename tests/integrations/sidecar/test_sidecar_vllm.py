"""A sidecar in front of two real vLLM servers on the CPU, where PBKV_VLLM_PYTHON names an environment with vLLM."""

import json
import os
import subprocess
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from httpx2 import AsyncClient, HTTPError
from prometheus_client.parser import text_string_to_metric_families

import pbkv_cluster
from pbkv_cluster.gpu_worker.model.random_model import build
from pbkv_cluster.store.cluster_index.redis_server import free_port
from tests.integrations.sidecar.sidecar_rig import SidecarRig, sidecar
from tests.polling import eventually

PYTHON = os.environ.get("PBKV_VLLM_PYTHON", "")
START_S = 900.0
ENVIRONMENT = {
    "GLOO_SOCKET_IFNAME": "lo",
    "HF_HUB_OFFLINE": "1",
    "OMP_NUM_THREADS": "1",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_HOST_IP": "127.0.0.1",
    "VLLM_NO_USAGE_STATS": "1",
}
CONNECTOR = {
    "kv_connector": "PbkvConnector",
    "kv_role": "kv_both",
    "kv_connector_module_path": "pbkv_cluster.integrations.vllm",
    "kv_load_failure_policy": "recompute",
}
STORE = {"name": f"test-{uuid.uuid4().hex}", "region_bytes": 64 << 20, "arena_bytes": 256 << 20, "keep_s": 30.0}
TEMPLATE = (
    "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}{% if add_generation_prompt %}assistant:{% endif %}"
)

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(1200),
    pytest.mark.skipif(not PYTHON, reason="PBKV_VLLM_PYTHON names no environment with vLLM"),
]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model")
    build(path, max_position_embeddings=2048)
    (path / "chat_template.jinja").write_text(TEMPLATE)
    return path


@pytest.fixture(scope="module")
def servers(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[dict[str, Any]]]:
    """Two of vLLM's servers, as `sidecar.engines` names them. The second keeps its KV in the node's store."""
    logs = tmp_path_factory.mktemp("vllm")
    engines: list[dict[str, Any]] = []
    processes: list[subprocess.Popen[bytes]] = []
    for number in range(2):
        port, events, replay = (free_port("127.0.0.1") for _ in range(3))
        kv_events = {
            "enable_kv_cache_events": True,
            "publisher": "zmq",
            "endpoint": f"tcp://*:{events}",
            "replay_endpoint": f"tcp://*:{replay}",
        }
        options = {"host": "127.0.0.1", "port": port, "model": model, "dtype": "float32", "block-size": 32}
        options |= {"max-model-len": 2048, "kv-events-config": json.dumps(kv_events)}
        environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | ENVIRONMENT
        if number == 1:
            options["kv-transfer-config"] = json.dumps(CONNECTOR | {"kv_connector_extra_config": STORE})
            environment["PYTHONPATH"] = str(Path(pbkv_cluster.__file__).parents[1])
        given = [part for name, value in options.items() for part in (f"--{name}", str(value))]
        with (logs / f"{number}.log").open("wb") as log:
            processes.append(
                subprocess.Popen(
                    [
                        *(PYTHON, "-m", "vllm.entrypoints.openai.api_server", *given),
                        *("--enforce-eager", "--enable-prompt-tokens-details"),
                    ],
                    env=environment,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                )
            )
        engines.append(
            {
                "url": f"http://127.0.0.1:{port}",
                "kv_events": f"tcp://127.0.0.1:{events}",
                "kv_replay": f"tcp://127.0.0.1:{replay}",
                "hints": ["cache_salt", "kv_transfer_params", "session_id"],
            }
        )
    try:
        yield engines
    finally:
        for process in processes:
            process.terminate()
        for process in processes:
            process.wait(60)


async def answers(http: AsyncClient, url: str) -> bool:
    try:
        return (await http.get(f"{url}/health")).status_code == 200
    except HTTPError:
        return False


async def stored_blocks(url: str) -> float:
    """Blocks that a server has put into the node's store, by its own metrics."""
    async with AsyncClient() as http:
        text = (await http.get(f"{url}/metrics")).text
    samples = (each for family in text_string_to_metric_families(text) for each in family.samples)
    blocks = (each for each in samples if each.name == "vllm:pbkv_blocks_total")
    return sum(each.value for each in blocks if each.labels["outcome"] == "stored")


async def ask(rig: SidecarRig, model: Path, system: str, question: str, **headers: str) -> tuple[str, int, int]:
    """Engine, prompt tokens and cached tokens of an answer."""
    messages = [{"role": "system", "content": system}, {"role": "user", "content": question}]
    ended = rig.ended
    answer = await rig.http.post(
        f"{rig.url}/v1/chat/completions", json={"model": str(model), "messages": messages, "max_tokens": 4}, headers=headers
    )
    assert answer.status_code == 200, answer.text
    await eventually(lambda: rig.ended > ended)
    usage = answer.json()["usage"]
    return answer.headers["x-pbkv-engine"], usage["prompt_tokens"], (usage["prompt_tokens_details"] or {})["cached_tokens"]


async def test_vllms_own_events_and_tokens_decide(model: Path, servers: list[dict[str, Any]]) -> None:
    """Prompts go to the engine that has their beginning, even by another client; salted ones are apart."""
    names = [server["url"].removeprefix("http://") for server in servers]
    texts = [text * 30 for text in ("The whale sings of the deep sea. ", "The stars are counted one by one. ")]
    async with AsyncClient(timeout=120.0) as http:
        for server, text in zip(servers, texts, strict=True):
            await eventually(lambda url=server["url"]: answers(http, url), START_S)  # type: ignore[misc]
            messages = [{"role": "system", "content": text}, {"role": "user", "content": "A?"}]
            body = {"model": str(model), "messages": messages, "max_tokens": 4}
            (await http.post(f"{server['url']}/v1/chat/completions", json=body)).raise_for_status()
    async with sidecar(engines=servers, tokenizer=str(model)) as rig:
        known = rig.server.fleet.engines
        await eventually(lambda: all(each.is_exact and len(each.blocks) > 4 for each in known))
        for name, text in [*zip(names, texts, strict=True)] * 2:
            engine, tokens, cached = await ask(rig, model, text, "And B?")
            assert engine == name
            assert cached >= tokens - 64
        assert (await ask(rig, model, texts[1], "C?", **{"x-pbkv-tenant": "acme"}))[2] == 0
        assert rig.server.proxy.prompts.mismatches == 0
        assert all(each.is_exact for each in known)
    assert await stored_blocks(servers[0]["url"]) == 0, "it has no connector"
    assert await stored_blocks(servers[1]["url"]) > 4
