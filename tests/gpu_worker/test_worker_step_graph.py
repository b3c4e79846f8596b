"""The step graph of a request reaches the worker's cache."""

from pathlib import Path

import pytest
from grpc import StatusCode, aio

from pbkv_cluster.core.workflow.step_graph import Join, StepGraph, StepNode
from pbkv_cluster.gpu_worker.engine.engine import Engine
from pbkv_cluster.rpc.convert import step_graph_to_wire
from pbkv_cluster.rpc.v1 import types_pb2
from tests.gpu_worker.worker_rig import config, serving, step


def graph_of(engine: Engine, workflow: str) -> StepGraph | None:
    return next(owner.graph for owner in engine.cache.workflows.all() if owner.id == workflow)


async def test_the_cache_knows_the_graph_of_a_workflow(model_dirs: dict[str, Path]) -> None:
    graph = StepGraph((StepNode("a"), StepNode("b", ("a", "b"), Join.OR)))
    async with serving(config(model_dirs["llama"], cache={"policy": "kvflow"})) as rig:
        await rig.run(step(range(1, 40), workflow_id="w", agent_id="a", step_graph=step_graph_to_wire(graph)))
        await rig.run(step(range(1, 40), workflow_id="plain", agent_id="a"))
        thread = rig.worker.thread
        assert await thread.call(lambda engine: graph_of(engine, "w")) == graph
        assert await thread.call(lambda engine: graph_of(engine, "plain")) is None
        with pytest.raises(aio.AioRpcError, match=r"step_graph\.nodes: ") as caught:
            await rig.run(step(range(1, 40), step_graph=types_pb2.StepGraph()))
        assert caught.value.code() is StatusCode.INVALID_ARGUMENT
