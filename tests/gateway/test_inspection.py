"""What operators see of open workflows and of agents, over real gRPC; and the counts behind it."""

from typing import Any

import pytest
from grpc import StatusCode, aio
from hypothesis import given
from hypothesis import strategies as st

from pbkv_cluster.core.tokens import pack
from pbkv_cluster.core.usage import Tier, Usage
from pbkv_cluster.core.workflow.tool_call import ToolCall
from pbkv_cluster.gateway.inspection.agents import Agents, CallSite, common_tokens
from pbkv_cluster.rpc.channel import connect
from pbkv_cluster.rpc.convert import tool_call_to_wire
from pbkv_cluster.rpc.v1 import inspection_pb2 as messages
from pbkv_cluster.rpc.v1 import inspection_pb2_grpc
from pbkv_cluster.rpc.v1.types_pb2 import Prompt
from tests.gateway.peers import ScriptedWorker
from tests.gateway.rig import Rig, running

SITE = CallSite("shop", "planner", "")


def stub_of(rig: Rig) -> Any:
    channel = connect(rig.address)
    rig.stack.push_async_callback(channel.close)
    return inspection_pb2_grpc.InspectionServiceStub(channel)


async def test_a_workflow_is_shown_with_its_path_and_its_tool() -> None:
    async with running(ScriptedWorker("w1")) as rig:
        stub = stub_of(rig)
        name = await rig.start_workflow(workload="shop")
        await rig.start_workflow(workload="other")
        await rig.run(name, agent_id="planner", call_site="outline", prompt=Prompt(text="plan it"))
        await rig.stub.ReportToolCall(tool_call_to_wire(name, ToolCall("search", "1", None), True))
        (summary,) = (await stub.ListWorkflows(messages.ListWorkflowsRequest(workload="shop"))).workflows
        assert (summary.workflow_id, summary.steps, summary.agent_id, summary.tool) == (name, 1, "planner", "search")
        assert list(summary.worker_ids) == ["w1"]

        await rig.stub.ReportToolCall(tool_call_to_wire(name, ToolCall("search", "1", None), False))
        await rig.run(name, agent_id="coder", parent_step=0, prompt=Prompt(text="write it"))
        shown = await stub.GetWorkflow(messages.GetWorkflowRequest(workflow_id=name))
        assert shown.summary.tool == ""
        first, second = shown.steps
        assert (first.agent_id, first.call_site, first.prompt_tokens, first.output_tokens) == ("planner", "outline", 7, 4)
        assert list(first.tools) == ["search"]
        assert first.duration_s >= 0
        assert (second.step, second.agent_id, second.parent_step) == (1, "coder", 0)

        listed = await stub.ListWorkflows(messages.ListWorkflowsRequest(limit=1))
        assert ([each.workflow_id for each in listed.workflows], listed.open) == ([name], 2)


async def test_a_workflow_that_is_not_open_is_not_found() -> None:
    async with running(ScriptedWorker("w1")) as rig:
        stub = stub_of(rig)
        name = await rig.start_workflow()
        await rig.end_workflow(name)
        with pytest.raises(aio.AioRpcError) as error:
            await stub.GetWorkflow(messages.GetWorkflowRequest(workflow_id=name))
        assert error.value.code() is StatusCode.NOT_FOUND
        assert not (await stub.ListWorkflows(messages.ListWorkflowsRequest())).workflows


async def test_bad_requests_are_refused_by_name() -> None:
    async with running(ScriptedWorker("w1")) as rig:
        stub = stub_of(rig)
        for call, problem in (
            (stub.ListWorkflows(messages.ListWorkflowsRequest(limit=-1)), "limit: must be from 0 to 1000"),
            (stub.ListWorkflows(messages.ListWorkflowsRequest(workload="w" * 257)), "workload: at most 256 bytes"),
            (stub.ListAgents(messages.ListAgentsRequest(limit=1001)), "limit: must be from 0 to 1000"),
            (stub.GetWorkflow(messages.GetWorkflowRequest()), "workflow_id: must not be empty"),
        ):
            with pytest.raises(aio.AioRpcError, match=problem) as error:
                await call
            assert error.value.code() is StatusCode.INVALID_ARGUMENT


async def test_agents_are_counted_by_call_site() -> None:
    async with running(ScriptedWorker("w1")) as rig:
        stub = stub_of(rig)
        for name in ("first", "second"):
            await rig.start_workflow(workflow_id=name, workload="shop")
            await rig.run(
                name, agent_id="planner", call_site="outline", prompt=Prompt(text=f"always the same, but then {name}")
            )
        await rig.run("second", agent_id="coder", prompt=Prompt(text="code"))
        agents = (await stub.ListAgents(messages.ListAgentsRequest(workload="shop"))).agents
        assert {(each.agent_id, each.call_site, each.steps) for each in agents} == {("planner", "outline", 2), ("coder", "", 1)}
        planner = next(each for each in agents if each.agent_id == "planner")
        assert (planner.parting_pairs, planner.parting_tokens) == (1, len("always the same, but then "))
        assert not (await stub.ListAgents(messages.ListAgentsRequest(workload="other"))).agents


@given(st.lists(st.integers(0, 2), max_size=40), st.lists(st.integers(0, 2), max_size=40))
def test_prompts_have_in_common_what_comes_before_the_first_difference(first: list[int], second: list[int]) -> None:
    common = common_tokens(pack(first), pack(second))
    assert first[:common] == second[:common]
    assert common == min(len(first), len(second)) or first[common] != second[common]


def test_prompts_of_one_workflow_are_not_compared() -> None:
    agents = Agents()
    for workflow, prompt in (("a", [1, 2, 3]), ("a", [1, 2, 3, 4]), ("b", [1, 2, 9]), ("b", [7]), ("c", [1])):
        agents.add(SITE, workflow, pack(prompt), Usage(prompt_tokens=len(prompt)))
    ((_, stats),) = agents.first(10)
    assert list(stats.partings) == [2, 1]  # a and b, then b and c; the median is the lower one
    assert stats.parting_tokens == 1


def test_the_agents_that_lose_most_come_first_and_their_number_is_bounded() -> None:
    agents = Agents()
    for number in range(1500):
        usage = Usage(prompt_tokens=2000, available_tokens=1500, delivered={Tier.GPU: number})
        agents.add(CallSite("", str(number), ""), "w", b"", usage)
    found = agents.first(10_000)
    assert len(found) == 1000
    assert [site.agent for site, _ in found[:2]] == ["500", "501"]
