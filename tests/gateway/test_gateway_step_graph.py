"""Step graphs, from a client through the gateway to the worker."""

import asyncio

import grpc
import pytest

from pbkv_cluster.client import AsyncClient, Client, Join, StepGraph, StepNode
from pbkv_cluster.core.errors import InvalidArgument
from pbkv_cluster.rpc.convert import step_graph_from_wire, step_graph_to_wire
from pbkv_cluster.rpc.v1 import types_pb2, worker_pb2
from tests.gateway.peers import ScriptedWorker
from tests.gateway.rig import refused, running

GRAPH = StepGraph(
    (
        StepNode("plan"),
        StepNode("code", ("plan", "test"), Join.OR),
        StepNode("test", ("code",)),
        StepNode("é", ("code", "test")),
    )
)
OTHER = StepGraph((StepNode("plan"), StepNode("code", ("plan",))))

Wire = types_pb2.StepGraph


def received(request: worker_pb2.RunStepRequest) -> StepGraph | None:
    return step_graph_from_wire(request.step_graph) if request.HasField("step_graph") else None


async def test_a_graph_reaches_the_worker_with_every_step_from_both_clients() -> None:
    worker = ScriptedWorker("w0")
    async with running(worker) as rig:

        def run_blocking() -> None:
            with Client(rig.address) as client, client.start_workflow(step_graph=GRAPH) as workflow:
                workflow.run(agent="plan", prompt="p", max_tokens=1)

        async with AsyncClient(rig.address) as client, await client.start_workflow(step_graph=GRAPH) as workflow:
            await workflow.run(agent="plan", prompt="p", max_tokens=1)
            await workflow.run(agent="stranger", prompt="p", max_tokens=1)
            async with await client.start_workflow() as plain:
                await plain.run(agent="plan", prompt="p", max_tokens=1)
        await asyncio.to_thread(run_blocking)
    assert [received(request) for request in worker.requests] == [GRAPH, GRAPH, None, GRAPH]


async def test_a_restarted_gateway_still_has_the_graph() -> None:
    worker = ScriptedWorker("w0")
    async with running(worker) as rig:
        workflow = await rig.start_workflow(step_graph=step_graph_to_wire(GRAPH))
        await rig.restart_gateway()
        await rig.run(workflow)
        assert received(worker.requests[0]) == GRAPH
        async with refused(grpc.StatusCode.INVALID_ARGUMENT, "step_graph: "):
            await rig.start_workflow(workflow_id=workflow, step_graph=step_graph_to_wire(OTHER))


async def test_an_open_workflow_keeps_its_graph() -> None:
    async with running() as rig, AsyncClient(rig.address) as client:
        await client.start_workflow("mine", step_graph=GRAPH)
        await client.start_workflow("mine", step_graph=GRAPH)
        await client.start_workflow("mine")
        await client.start_workflow("plain")
        for workflow_id, graph in (("mine", OTHER), ("plain", GRAPH)):
            with pytest.raises(
                InvalidArgument, match=f"step_graph: workflow '{workflow_id}' is open without it, or with another"
            ):
                await client.start_workflow(workflow_id, step_graph=graph)
        async with await client.start_workflow("mine") as workflow:
            pass
        await client.start_workflow(workflow.id, step_graph=OTHER)


async def test_every_bad_field_of_a_graph_is_named() -> None:
    bad = [
        (Wire(), "step_graph.nodes: from 1 to 256"),
        (Wire(nodes=[Wire.Node()]), "step_graph.nodes[0].agent_id: must not be empty"),
        (Wire(nodes=[Wire.Node(agent_id="n" * 257)]), "step_graph.nodes[0].agent_id: at most 256 bytes, got 257"),
        (Wire(nodes=[Wire.Node(agent_id="a")] * 2), "step_graph.nodes[1].agent_id: 'a' is there already"),
        (Wire(nodes=[Wire.Node(agent_id="a", predecessors=["b"])]), "step_graph.nodes[0].predecessors: 'b' is no agent"),
        (Wire(nodes=[Wire.Node(agent_id="a", join=7)]), "step_graph.nodes[0].join: 7 is not"),  # type: ignore[arg-type]
    ]
    async with running() as rig:
        for graph, details in bad:
            async with refused(grpc.StatusCode.INVALID_ARGUMENT, details):
                await rig.start_workflow(workflow_id="w", step_graph=graph)
        assert (await rig.status()).open_workflows == 0
        assert await rig.start_workflow(workflow_id="w", step_graph=Wire(nodes=[Wire.Node(agent_id="a")])) == "w"
