"""`pbkv record` against a real gateway with a scripted worker."""

import asyncio
import json
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

from pbkv_cluster.rpc.v1.types_pb2 import Prompt
from pbkv_cluster.simulator.traces.files import load_trace
from tests.cli.conftest import DEADLINE_S, LoopThread, Pbkv
from tests.gateway.pair import Pair, pair
from tests.gateway.peers import ScriptedWorker
from tests.gateway.rig import Rig, running


@asynccontextmanager
async def busy_gateway() -> AsyncIterator[str]:
    """A gateway on which workflows run one after the other, again and again, until they are no longer wanted."""
    async with running(ScriptedWorker("w1")) as rig:
        playing = asyncio.create_task(_play(rig))
        try:
            yield rig.address
        finally:
            playing.cancel()
            await asyncio.gather(playing, return_exceptions=True)


async def _play(rig: Rig) -> None:
    while True:
        name = await rig.start_workflow(workload="shop")
        for agent in ("planner", "coder"):
            await rig.run(name, agent_id=agent, prompt=Prompt(text=f"{agent}: a prompt of more than sixteen letters"))
        await rig.end_workflow(name)


def test_records_until_there_are_enough_workflows(pbkv: Pbkv, loop_thread: LoopThread, tmp_path: Path) -> None:
    gateway = busy_gateway()
    address = loop_thread.run(gateway.__aenter__())
    path = tmp_path / "mine.jsonl.gz"
    try:
        # A process of its own: it leaves a stream in the middle, of which gRPC still tells when its event loop is closed.
        command = [
            sys.executable,
            "-m",
            "pbkv_cluster",
            "record",
            "--out",
            str(path),
            "--endpoint",
            address,
            "--workflows",
            "3",
            "--json",
            "-",
        ]
        done = subprocess.run(command, capture_output=True, text=True, timeout=DEADLINE_S, check=False)
    finally:
        loop_thread.run(gateway.__aexit__(None, None, None))
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    told = json.loads(done.stdout)
    assert (told["workflows"], told["bytes"]) == (len(load_trace(path).workflows), path.stat().st_size)
    trace = load_trace(path)
    whole = [each for each in trace.workflows if [step.agent for step in each.steps] == ["planner", "coder"]]
    assert len(whole) >= 2  # the first and the last may be cut
    assert trace.starts_at is not None
    assert "workflows" in done.stderr
    assert pbkv("trace", "check", str(path)).code == 0


def test_says_so_where_there_is_no_cluster(pbkv: Pbkv, tmp_path: Path) -> None:
    outcome = pbkv("record", "--out", str(tmp_path / "t.jsonl"), "--endpoint", "127.0.0.1:9", "--duration", "60")
    assert outcome.code == 1
    assert outcome.err.splitlines()[-1].startswith("pbkv: ")


def test_does_not_overwrite_a_recording(pbkv: Pbkv, tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    path.write_text("{}\n")
    outcome = pbkv("record", "--out", str(path))
    assert outcome.code == 2
    assert "is there already" in outcome.err


def test_records_the_workflows_of_all_gateways_once(pbkv: Pbkv, loop_thread: LoopThread, tmp_path: Path) -> None:
    both, path = AsyncExitStack(), tmp_path / "t.jsonl"

    async def play(gateways: Pair) -> None:
        while True:
            opened = [(side, await side.start(workload=name)) for side, name in ((gateways.a, "a"), (gateways.b, "b"))]
            for side, workflow in opened:
                for each in (gateways.a, gateways.b):  # one of them passes the step on
                    await each.run(workflow, agent_id="planner")
                await side.end(workflow)

    async def start() -> tuple[str, asyncio.Task[None]]:
        gateways = await both.enter_async_context(pair(ScriptedWorker("w1")))
        return gateways.b.address, asyncio.create_task(play(gateways))

    async def stop(playing: asyncio.Task[None]) -> None:
        playing.cancel()
        await asyncio.gather(playing, return_exceptions=True)
        await both.aclose()

    address, playing = loop_thread.run(start())
    try:
        outcome = pbkv("record", "--out", str(path), "--endpoint", address, "--workflows", "6")
    finally:
        loop_thread.run(stop(playing))
    assert outcome.code == 0, outcome.err
    assert "warning" not in outcome.err
    workflows = load_trace(path).workflows
    assert {each.workload for each in workflows} == {"a", "b"}
    assert max(len(each.steps) for each in workflows) == 2
    assert sum(len(each.steps) == 2 for each in workflows) >= 4
