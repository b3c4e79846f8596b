"""Calls about workflows: served here, or passed on to the gateway that holds the workflow. Front doors call these."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TypeVar

from pbkv_cluster.core.errors import TryAgain
from pbkv_cluster.core.workflow.tool_call import ToolCall
from pbkv_cluster.gateway.decisions import Decisions, Reason
from pbkv_cluster.gateway.peers.link import PeerLink, PeerLost
from pbkv_cluster.gateway.peers.peers import HeldElsewhere, Peers
from pbkv_cluster.gateway.workflow.lifecycle import WorkflowLifecycle
from pbkv_cluster.gateway.workflow.open_workflows import OpenWorkflows
from pbkv_cluster.gateway.workflow.requests import WorkflowRequest
from pbkv_cluster.rpc import convert
from pbkv_cluster.rpc.v1 import workflow_pb2

T = TypeVar("T")

ATTEMPTS = 8  # to find the gateway that holds a workflow, while it moves
PAUSE_S = 0.05  # between them, where the workflow has just moved


@dataclass(frozen=True, slots=True)
class StartedWorkflow:
    """A workflow that is open, here or at another gateway."""

    id: str
    lease_s: float


@dataclass(slots=True)
class WorkflowCalls:
    """Errors are those of `WorkflowLifecycle`, and TryAgain where no gateway is found that holds the workflow.

    `passed_on`: the call comes from another gateway.
    """

    lifecycle: WorkflowLifecycle
    peers: Peers
    decisions: Decisions

    @property
    def workflows(self) -> OpenWorkflows:
        """The workflows that this gateway holds."""
        return self.lifecycle.workflows

    async def start(self, request: WorkflowRequest, *, passed_on: bool = False) -> StartedWorkflow:
        """Opens a workflow, or finds the open one of that id."""

        async def here() -> StartedWorkflow:
            workflow = await self.lifecycle.start(request)
            return StartedWorkflow(workflow.id, workflow.lease_s)

        async def there(peer: PeerLink) -> StartedWorkflow:
            graph = None if request.step_graph is None else convert.step_graph_to_wire(request.step_graph)
            message = workflow_pb2.StartWorkflowRequest(
                workflow_id=request.workflow_id,
                workload=request.workload,
                tenant=request.tenant,
                lease_s=request.lease_s,
                step_graph=graph,
            )
            answer = await peer.start(message)
            return StartedWorkflow(answer.workflow_id, answer.lease_s)

        return await self._call(here, there, passed_on)

    async def report_tool(self, workflow_id: str, call: ToolCall, started: bool, *, passed_on: bool = False) -> None:
        """Reports a tool call. Repeats are harmless."""

        async def there(peer: PeerLink) -> None:
            await peer.report_tool(convert.tool_call_to_wire(workflow_id, call, started))

        await self._call(lambda: self.lifecycle.report_tool(workflow_id, call, started), there, passed_on)

    async def end(self, workflow_id: str, *, passed_on: bool = False) -> None:
        """Ends a workflow."""
        await self._call(lambda: self.lifecycle.end(workflow_id), lambda peer: peer.end(workflow_id), passed_on)

    async def _call(self, here: Callable[[], Awaitable[T]], there: Callable[[PeerLink], Awaitable[T]], passed_on: bool) -> T:
        for _ in range(ATTEMPTS):
            try:
                return await here()
            except HeldElsewhere as elsewhere:
                if passed_on:
                    raise elsewhere.moved() from None
                holder = elsewhere.holder
            self.decisions[Reason.CALL_PASSED_ON] += 1
            try:
                return await there(await self.peers.link(holder.incarnation, holder.address))
            except PeerLost:
                self.peers.lose(holder)
            except TryAgain:
                await asyncio.sleep(PAUSE_S)
        raise TryAgain("the workflow moves from gateway to gateway")
