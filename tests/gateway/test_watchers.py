"""What a client is told that watches workflows, over real gRPC; and that one which does not read harms nobody."""

from typing import Any

import pytest

from pbkv_cluster.core.blocks import KEY_BYTES
from pbkv_cluster.core.clock import ManualClock
from pbkv_cluster.core.errors import ResourceExhausted
from pbkv_cluster.core.workflow.events import EventKind, WorkflowEvent
from pbkv_cluster.core.workflow.tool_call import ToolCall
from pbkv_cluster.gateway.inspection.watchers import WATCHES_MAX, Watchers
from pbkv_cluster.rpc.channel import connect
from pbkv_cluster.rpc.convert import tool_call_to_wire
from pbkv_cluster.rpc.v1 import inspection_pb2, inspection_pb2_grpc
from pbkv_cluster.rpc.v1.types_pb2 import Prompt
from tests.gateway.peers import ScriptedWorker
from tests.gateway.rig import Rig, running


def tool(workflow: str = "w") -> WorkflowEvent:
    return WorkflowEvent(EventKind.TOOL_STARTED, workflow, 1, 5.0, "shop", tool="search")


async def watch(rig: Rig, **request: Any) -> Any:
    channel = connect(rig.address)
    rig.stack.push_async_callback(channel.close)
    stub: Any = inspection_pb2_grpc.InspectionServiceStub(channel)
    call = stub.WatchWorkflows(inspection_pb2.WatchWorkflowsRequest(**request))
    await call.initial_metadata()
    return call


@pytest.mark.parametrize("with_token_ids", [False, True])
async def test_steps_tools_and_ends_are_told_in_order(with_token_ids: bool) -> None:
    async with running(ScriptedWorker("w1")) as rig:
        call = await watch(rig, with_token_ids=with_token_ids)
        name = await rig.start_workflow(workload="shop")
        prompt = "a prompt of more than sixteen letters"
        await rig.run(name, agent_id="planner", call_site="outline", prompt=Prompt(text=prompt))
        await rig.stub.ReportToolCall(tool_call_to_wire(name, ToolCall("search", "1", None), True))
        await rig.end_workflow(name)
        step, called, ended = [await call.read() for _ in range(3)]
        assert {(each.workflow_id, each.workload) for each in (step, called, ended)} == {(name, "shop")}
        assert step.time_s <= called.time_s <= ended.time_s
        assert [each.WhichOneof("event") for each in (step, called, ended)] == ["step", "tool", "end"]
        assert (step.step.agent_id, step.step.call_site, called.tool) == ("planner", "outline", "search")
        assert step.step.started_s <= step.time_s
        full = (step.step.prompt_tokens + step.step.output_tokens - 1) // 16
        assert len(step.step.block_keys) == full * KEY_BYTES
        assert full > 0
        assert step.step.HasField("prompt") == step.step.HasField("output") == with_token_ids
        assert (prompt.encode() in step.SerializeToString()) is False


async def test_a_client_that_does_not_read_loses_its_watch_and_nothing_else() -> None:
    watchers = Watchers(ManualClock(), queue_bytes=300)
    slow, good = watchers.open(False), watchers.open(False)
    reading = good.__aiter__()
    for number in range(100):
        watchers.event(tool(f"w{number}"))
        assert (await anext(reading)).workflow_id == f"w{number}"
    got: list[str] = []

    async def read_slowly() -> None:
        async for event in slow:
            got.append(event.workflow_id)  # noqa: PERF401  # it ends with an error

    with pytest.raises(ResourceExhausted, match="too slowly"):
        await read_slowly()
    assert got == [f"w{number}" for number in range(len(got))]
    assert 0 < len(got) < 20


async def test_no_more_may_watch_than_are_allowed_for() -> None:
    watchers = Watchers(ManualClock())
    watches = [watchers.open(False) for _ in range(WATCHES_MAX)]
    with pytest.raises(ResourceExhausted, match="clients watch"):
        watchers.open(False)
    watchers.close(watches[0])
    watchers.open(False)
