"""`pbkv workflows` and `pbkv agents` against a real gateway with a scripted worker."""

import asyncio
import json
import threading
from collections.abc import Iterator
from contextlib import AsyncExitStack

import pytest

from pbkv_cluster.rpc.v1.types_pb2 import Prompt
from tests.cli.conftest import Pbkv
from tests.gateway.peers import ScriptedWorker
from tests.gateway.rig import Rig, running


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    """A gateway with two open workflows: one has taken two steps, the other none."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    stack = AsyncExitStack()

    async def start() -> Rig:
        rig = await stack.enter_async_context(running(ScriptedWorker("w1")))
        await rig.start_workflow(workflow_id="busy", workload="shop")
        await rig.start_workflow(workflow_id="quiet")
        await rig.run("busy", agent_id="planner", call_site="outline", prompt=Prompt(text="plan it"))
        await rig.run("busy", agent_id="coder", prompt=Prompt(text="write it"))
        return rig

    yield asyncio.run_coroutine_threadsafe(start(), loop).result(60).address
    asyncio.run_coroutine_threadsafe(stack.aclose(), loop).result(60)
    loop.call_soon_threadsafe(loop.stop)
    thread.join()
    loop.close()


def test_open_workflows_are_listed(pbkv: Pbkv, endpoint: str) -> None:
    shown = pbkv("workflows", "ls", "--endpoint", endpoint)
    assert shown.code == 0
    for what in ("busy", "quiet", "shop", "coder", "w1"):
        assert what in shown.out
    only = json.loads(pbkv("workflows", "ls", "--workload", "shop", "--endpoint", endpoint, "--json", "-").out)
    assert [(each["workflow_id"], each["steps"], each["agent"]) for each in only] == [("busy", 2, "coder")]


def test_a_workflow_is_ended(pbkv: Pbkv, endpoint: str) -> None:
    assert "quiet has ended" in pbkv("workflows", "end", "quiet", "--endpoint", endpoint).out
    again = pbkv("workflows", "end", "quiet", "--endpoint", endpoint)
    assert (again.code, "quiet" in again.err) == (1, True)
    listed = json.loads(pbkv("workflows", "ls", "--endpoint", endpoint, "--json", "-").out)
    assert [each["workflow_id"] for each in listed] == ["busy"]
    ended = pbkv("workflows", "end", "busy", "--endpoint", endpoint, "--json", "-")
    assert json.loads(ended.out) == {"workflow_id": "busy"}


def test_names_are_whole_in_a_narrow_terminal(pbkv: Pbkv, endpoint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    shown = pbkv("agents", "ls", "--endpoint", endpoint).out
    assert "…" not in shown
    assert all(name in shown for name in ("planner", "outline", "coder", "recomputed", "differ from"))


def test_agents_are_listed_by_call_site(pbkv: Pbkv, endpoint: str) -> None:
    shown = pbkv("agents", "ls", "--endpoint", endpoint)
    for what in ("planner", "outline", "coder", "shop"):
        assert what in shown.out
    agents = json.loads(pbkv("agents", "ls", "--endpoint", endpoint, "--json", "-").out)
    assert {(each["agent"], each["call_site"], each["prompt_tokens"]) for each in agents} == {
        ("planner", "outline", 7),
        ("coder", "", 8),
    }
