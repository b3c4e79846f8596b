"""Two gateways of one cluster, `a` and `b`, in one process, over scripted workers and a scripted predictor."""

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pbkv_cluster.gateway.server import GatewayServer
from pbkv_cluster.rpc.channel import connect
from pbkv_cluster.rpc.v1 import workflow_pb2
from pbkv_cluster.rpc.v1 import workflow_pb2_grpc as workflow_grpc
from pbkv_cluster.store.cluster_index import GatewayEntry
from tests.gateway.peers import ScriptedPredictor, ScriptedWorker
from tests.gateway.rig import PATIENCE_S, Answer, Rig, codec, read, running, step_request

if TYPE_CHECKING:
    from pbkv_cluster.rpc.v1.workflow_pb2_grpc import WorkflowServiceAsyncStub


@dataclass(eq=False)
class Side:
    """One of the gateways, and a client of it."""

    gateway: GatewayServer
    address: str
    stub: "WorkflowServiceAsyncStub"

    async def start(self, **fields: Any) -> str:
        return (await self.stub.StartWorkflow(workflow_pb2.StartWorkflowRequest(**fields))).workflow_id

    async def end(self, workflow_id: str) -> None:
        await self.stub.EndWorkflow(workflow_pb2.EndWorkflowRequest(workflow_id=workflow_id))

    def submit(self, workflow_id: str, **fields: Any) -> Any:
        return self.stub.SubmitStep(step_request(workflow_id, **fields), timeout=PATIENCE_S)

    async def run(self, workflow_id: str, **fields: Any) -> Answer:
        return await read(self.submit(workflow_id, **fields))

    def holds(self, workflow_id: str) -> bool:
        return self.gateway.workflows.workflows.peek(workflow_id) is not None

    async def decisions(self) -> dict[str, int]:
        return dict((await self.gateway.status.read()).decisions)


@dataclass(eq=False)
class Pair:
    """Both of them, and what is around them."""

    rig: Rig
    a: Side
    b: Side
    predictor: ScriptedPredictor


@asynccontextmanager
async def pair(*workers: ScriptedWorker, **settings: Any) -> AsyncIterator[Pair]:
    """Further arguments as for `running`."""
    async with running(*workers, **settings) as rig:
        predictor = await rig.add_predictor()
        first = Side(rig.gateway, rig.address, rig.stub)
        gateway = GatewayServer(rig.config, rig.directory, rig.index, codec(), rig.clock, "gateway-1")
        rig.stack.push_async_callback(gateway.stop)
        address = await gateway.start("127.0.0.1", 0)
        channel = connect(address)
        rig.stack.push_async_callback(channel.close)
        second = Side(gateway, address, workflow_grpc.WorkflowServiceStub(channel))
        for side, name in ((first, "gateway"), (second, "gateway-1")):
            entry = GatewayEntry(name, side.gateway.peers.incarnation, "node", side.address, "", os.getpid())
            await rig.directory.announce_gateway(entry)
        yield Pair(rig, first, second, predictor)
