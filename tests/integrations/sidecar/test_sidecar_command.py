"""`pbkv sidecar` as a process of its own."""

import asyncio
import json
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import yaml
from httpx2 import AsyncClient

from pbkv_cluster.cli.main import main
from pbkv_cluster.store.cluster_index.redis_server import free_port
from tests.integrations.sidecar.scripted_engine import ScriptedEngine
from tests.integrations.sidecar.sidecar_rig import codec, tokenizer_path


async def command(*arguments: str) -> tuple[int, str, str]:
    """Exit status, output and errors of `pbkv sidecar`."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "pbkv_cluster", "sidecar", *arguments),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, errors = await process.communicate()
    return process.returncode or 0, out.decode(), errors.decode()


@asynccontextmanager
async def serving(*arguments: str) -> AsyncIterator[list[str]]:
    """A sidecar that serves, and the lines that it has printed; it must end in good order."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "pbkv_cluster", "sidecar", *arguments),
        stdout=asyncio.subprocess.PIPE,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )
    assert process.stdout is not None
    try:
        lines = [(await process.stdout.readline()).decode().strip() for _ in range(2)]
        yield lines
        process.send_signal(signal.SIGTERM)
        assert await process.wait() == 0
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


async def test_it_serves_shows_its_status_and_ends_in_good_order(tmp_path: Path) -> None:
    engine, port = ScriptedEngine(codec=codec()), str(free_port("127.0.0.1"))
    await engine.start()
    entry = {"url": engine.url, "kv_events": engine.kv_events, "hints": ["session_id"]}
    file = tmp_path / "sidecar.yaml"
    file.write_text(yaml.safe_dump({"sidecar": {"engines": [entry], "tokenizer": tokenizer_path()}}))
    async with serving("--config", str(file), "--port", port) as lines, AsyncClient(timeout=20.0) as http:
        assert lines == [f"sidecar  http://127.0.0.1:{port}/v1 (OpenAI's API; metrics at /metrics)", f"engine   {engine.url}"]
        body = {"model": "m", "messages": [{"role": "user", "content": "A question?"}]}
        named = {"x-pbkv-workflow": "w"}
        assert (await http.post(f"http://127.0.0.1:{port}/v1/chat/completions", json=body, headers=named)).status_code == 200
        status, out, shown = await command("--status", "--port", port, "--json", "-")
        assert status == 0
        told = json.loads(out)
        assert (told["steps"], told["open_workflows"], told["engines"][0]["hints"]) == (1, 1, ["session_id"])
        assert "prompts are compared by tokens" in shown
    assert engine.bodies[0]["session_id"] == "w"
    await engine.stop()
    status, _, errors = await command("--status", "--port", port)
    assert (status, f"no sidecar answers at 127.0.0.1:{port}" in errors) == (1, True)


@pytest.mark.parametrize(
    ("arguments", "field"),
    [
        ((), "sidecar.engines"),
        (("--kv-events", "tcp://a:1"), "--engine"),
        (("--engine", "http://a:1", "--kv-events", "tcp://a:1", "--kv-events", "tcp://a:2"), "--kv-events"),
        (("--engine", "http://a:1/v1"), "sidecar.engines.0.url"),
        (("--engine", "http://a:1", "--kv-events", "tcp://*:1"), "sidecar.engines.0.kv_events"),
        (("--engine", "http://a:1", "--kv-replay", "tcp://a:1"), "sidecar.engines.0"),
        (("--engine", "http://a:1", "--engine", "http://a:1"), "sidecar.engines"),
        (("--engine", "http://a:1", "--hints", "made_up"), "sidecar.engines.0.hints.0"),
        (("--engine", "http://a:1", "--kind", "tgi"), "sidecar.engines.0.kind"),
        (("--engine", "http://a:1", "--predictor", "nowhere"), "--predictor"),
    ],
)
def test_wrong_settings_are_named(arguments: tuple[str, ...], field: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exited:
        main(["sidecar", *arguments])
    assert exited.value.code == 2
    assert capsys.readouterr().err.startswith(f"pbkv: {field}")
