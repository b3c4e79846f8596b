"""Whoever of a vLLM worker is killed, what it has started ends with it: here with processes that stand for vLLM's."""

import asyncio
import json
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import psutil
import pytest

from tests.polling import eventually

# Every process below the worker's imports this at its start, as a stand-in for what needs vLLM.
STAND_IN = """
import asyncio, json, multiprocessing, os, sys, time, types

def hold(told, *others):
    spawn = multiprocessing.get_context("spawn")
    child = spawn.Process(target=hold, args=(told, *others, os.getpid())) if len(others) < 2 else None
    if child is not None:
        child.start()
    else:
        with open(told + ".new", "w") as file:
            json.dump({"process": others[0], "engine": others[1], "engine worker": os.getpid()}, file)
        os.rename(told + ".new", told)
    time.sleep(600)

class VllmMember:
    def __init__(self, context, worker_id):
        pass
    async def start(self):
        starting = asyncio.to_thread(hold, os.environ["TOLD"])
        if "STILL_LOADS" in os.environ:
            await starting
        self.starting = asyncio.ensure_future(starting)
        return "127.0.0.1:1"
    async def wait(self):
        await asyncio.Event().wait()
    async def stop(self):
        pass

hold.__module__ = "sitecustomize"
member = types.ModuleType("pbkv_cluster.integrations.vllm_worker.member")
member.VllmMember = VllmMember
sys.modules[member.__name__] = member
"""
ACTOR = """
import asyncio, sys
from pbkv_cluster.cluster.membership.member import MemberContext
from pbkv_cluster.cluster.nodes.vllm_host import VllmHost
from pbkv_cluster.core.config import load

async def main():
    config = load(flags={"engine.type": "vllm", "model.path": "/models/small"}).config
    host = VllmHost(MemberContext(config, "redis://127.0.0.1:1", "127.0.0.1", "node-0", name="worker-0"), "worker-0")
    await host.start()
    await asyncio.Event().wait()

asyncio.run(main())
"""


@asynccontextmanager
async def worker(folder: Path, **more: str) -> AsyncIterator[dict[str, psutil.Process]]:
    """The processes of a worker, by what they are, once all of them run."""
    (folder / "sitecustomize.py").write_text(STAND_IN)
    told = folder / "told"
    path = os.pathsep.join([str(folder), os.environ.get("PYTHONPATH", os.getcwd())])
    environment = {**os.environ, "PYTHONPATH": path, "TOLD": str(told), **more}
    actor = await asyncio.create_subprocess_exec(sys.executable, "-c", ACTOR, env=environment, start_new_session=True)
    found = {"actor": psutil.Process(actor.pid)}
    try:
        await eventually(told.exists, 90)
        found |= {name: psutil.Process(pid) for name, pid in json.loads(told.read_text()).items()}
        yield found
    finally:
        for process in found.values():
            if runs(process):
                process.kill()
        await actor.wait()


def runs(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


@pytest.mark.parametrize(
    ("killed", "left"),
    [
        (["actor"], []),
        (["process", "actor"], []),
        (["process"], ["actor"]),
        (["engine"], ["actor", "process"]),
    ],
)
async def test_what_a_killed_process_has_started_ends_with_it(tmp_path: Path, killed: list[str], left: list[str]) -> None:
    async with worker(tmp_path) as processes:
        for name in killed:
            os.kill(processes[name].pid, signal.SIGKILL)
        expected = [name for name in processes if name in left]
        await eventually(lambda: [name for name, process in processes.items() if runs(process)] == expected, 30)


async def test_a_worker_that_still_loads_ends_with_its_actor(tmp_path: Path) -> None:
    """Loading cannot be cancelled."""
    async with worker(tmp_path, STILL_LOADS="1") as processes:
        os.kill(processes["actor"].pid, signal.SIGKILL)
        await eventually(lambda: not any(map(runs, processes.values())), 30)
