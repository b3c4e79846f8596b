"""Commands where the engine of a worker is not ours, and does not tell what is cached: the rest is shown, and why not that."""

import json
from collections.abc import Iterator
from contextlib import AsyncExitStack

import pytest

from pbkv_cluster.integrations.vllm_worker.store_servicer import VllmStoreServicer
from pbkv_cluster.rpc.v1.types_pb2 import Prompt
from tests.cli.conftest import LoopThread, Pbkv
from tests.gateway.peers import ScriptedWorker
from tests.gateway.rig import Rig, running
from tests.integrations.vllm_worker import scripted

UNTOLD = "vLLM does not tell which workflows use its blocks"


class VllmWorker(ScriptedWorker):
    """A worker with the cache of vLLM's."""

    def caches(self) -> VllmStoreServicer:
        engine = scripted.ScriptedEngine()
        return VllmStoreServicer(engine, scripted.Rig(engine).held)


@pytest.fixture
def busy(loop_thread: LoopThread) -> Iterator[str]:
    """Address of a gateway with an open workflow `w`, whose agent is `planner`."""
    gateway = AsyncExitStack()

    async def start() -> Rig:
        rig = await gateway.enter_async_context(running(VllmWorker("w1")))
        await rig.start_workflow(workflow_id="w")
        await rig.run("w", agent_id="planner", prompt=Prompt(text="a prompt"))
        return rig

    yield loop_thread.run(start()).address
    loop_thread.run(gateway.aclose())


def test_the_steps_of_a_workflow_are_shown(pbkv: Pbkv, busy: str) -> None:
    done = pbkv("workflows", "show", "w", "--endpoint", busy)
    assert done.code == 0, done.err
    assert "planner" in done.out
    assert f"cached: not known ({UNTOLD})" in done.out
    found = json.loads(pbkv("workflows", "show", "w", "--endpoint", busy, "--json", "-").out)
    assert (found["cached"], found["cached_problem"]) == (None, UNTOLD)


def test_what_is_expected_of_a_workflow_is_explained(pbkv: Pbkv, busy: str) -> None:
    done = pbkv("explain", "w", "--endpoint", busy)
    assert done.code == 0, done.err
    assert "path: planner" in done.out
    assert f"cached: not known ({UNTOLD})" in done.out
    found = json.loads(pbkv("explain", "w", "--endpoint", busy, "--json", "-").out)
    assert (found["path"], found["cached_problem"], found["runs"]) == (["planner"], UNTOLD, [])


def test_the_status_of_a_mixed_cluster_says_which_worker_has_which_engine(pbkv: Pbkv, loop_thread: LoopThread) -> None:
    gateway = AsyncExitStack()

    async def start() -> str:
        workers = ScriptedWorker("w0"), VllmWorker("w1", engine="vllm 0.32.0")
        return (await gateway.enter_async_context(running(*workers))).address

    address = loop_thread.run(start())
    done = pbkv("status", "--endpoint", address)
    found = json.loads(pbkv("status", "--endpoint", address, "--json", "-").out)["workers"]
    loop_thread.run(gateway.aclose())
    assert done.code == 0, done.err
    first, second = done.out.index("w0"), done.out.index("w1")
    assert first < done.out.index("pbkv", first) < second < done.out.index("vllm 0.32.0")
    assert [(each["worker_id"], each["engine"]) for each in found] == [("w0", "pbkv"), ("w1", "vllm 0.32.0")]
