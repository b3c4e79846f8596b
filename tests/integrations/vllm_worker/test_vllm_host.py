"""The member that supervises vLLM's process: what the process says and how it ends is told as of any other member."""

import asyncio
import json
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest

from pbkv_cluster.cluster.membership.member import MemberContext
from pbkv_cluster.cluster.nodes.vllm_host import PROCESS, VllmHost
from pbkv_cluster.core.config import load
from pbkv_cluster.core.errors import StartupError, Unavailable
from tests.polling import eventually

SERVES = """
    child = subprocess.Popen(["sleep", "600"])
    told = {"pid": os.getpid(), "child": child.pid, "orders": orders, "arguments": sys.argv[1:]}
    Path(sys.argv[0] + ".told").write_text(json.dumps(told))
    say(address="127.0.0.1:1234")
    sys.stdin.read()
    Path(sys.argv[0] + ".stopped").touch()
"""
PROBLEM = "say(problem='vllm.args.blok_size: vLLM has no such engine argument'); sys.exit(70)"
FAILS_LATER = "say(address='127.0.0.1:1234'); say(problem='the engine has ended'); sys.exit(70)"
DIES_LATER = "say(address='127.0.0.1:1234'); os.kill(os.getpid(), 9)"


def interpreter(folder: Path, body: str) -> Path:
    """An executable that stands for vLLM's Python."""
    script = folder / "python"
    lines = "\n".join(line.strip() for line in body.strip().splitlines())
    script.write_text(
        f"#!{sys.executable}\nimport json, os, subprocess, sys\nfrom pathlib import Path\n"
        "orders = json.loads(sys.stdin.readline())\n"
        "def say(**fields): print(json.dumps(fields), flush=True)\n" + lines + "\n"
    )
    script.chmod(0o700)
    return script


def host(python: Path | str, model: str = "/models/small") -> VllmHost:
    config = load(flags={"engine.type": "vllm", "vllm.python": str(python), "model.path": model}).config
    context = MemberContext(config, "redis://secret", "127.0.0.1", "node-0", name="worker-0", state_dir="/state")
    return VllmHost(context, "worker-0")


def told(folder: Path) -> dict[str, Any]:
    """What the process was told, and its id and that of a process below it."""
    found: dict[str, Any] = json.loads((folder / "python.told").read_text())
    return found


async def test_the_process_gets_its_orders_and_ends_with_all_that_it_has_started(tmp_path: Path) -> None:
    member = host(interpreter(tmp_path, SERVES))
    try:
        assert await member.start() == "127.0.0.1:1234"
        said = told(tmp_path)
        assert said["arguments"] == ["-m", PROCESS]
        orders = said["orders"]
        assert (orders["name"], orders["host"], orders["node_id"]) == ("worker-0", "127.0.0.1", "node-0")
        assert (orders["redis_url"], orders["state_dir"]) == ("redis://secret", "/state")
        assert orders["config"]["model"]["path"] == "/models/small"
        assert "redis://secret" not in " ".join(psutil.Process(said["pid"]).cmdline())
        child = psutil.Process(said["child"])
    finally:
        await member.stop()
    assert (tmp_path / "python.stopped").exists()
    await eventually(lambda: not child.is_running() or child.status() == psutil.STATUS_ZOMBIE)


@pytest.mark.parametrize(
    ("body", "problem"),
    [
        (PROBLEM, r"^vllm\.args\.blok_size: vLLM has no such engine argument$"),
        ("sys.exit(3)", r"^vllm\.python: .*vllm_worker\.process has ended with status 3; .* -m pip install .*\[vllm-worker\]"),
    ],
)
async def test_why_it_cannot_start_is_told(tmp_path: Path, body: str, problem: str) -> None:
    member = host(interpreter(tmp_path, body))
    with pytest.raises(StartupError, match=problem):
        await member.start()
    await member.stop()


async def test_an_interpreter_that_is_not_there_is_named() -> None:
    member = host("/nowhere/python")
    with pytest.raises(StartupError, match=r"^vllm\.python: '/nowhere/python' cannot be run: No such file"):
        await member.start()
    await member.stop()


@pytest.mark.parametrize(
    ("body", "problem"),
    [(FAILS_LATER, "^the engine has ended$"), (DIES_LATER, "^the process of vLLM has ended with status -9$")],
)
async def test_the_end_of_the_process_is_the_end_of_the_member(tmp_path: Path, body: str, problem: str) -> None:
    member = host(interpreter(tmp_path, body))
    assert await member.start() == "127.0.0.1:1234"
    with pytest.raises(Unavailable, match=problem):
        await asyncio.wait_for(member.wait(), 30)
    await member.stop()
