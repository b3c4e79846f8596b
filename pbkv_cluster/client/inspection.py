"""What operators look at in a running cluster, through its gateway."""

from collections.abc import AsyncIterable, AsyncIterator, Sequence

from pbkv_cluster.client.operator_connection import OperatorConnection, typed_errors
from pbkv_cluster.rpc.v1 import inspection_pb2, inspection_pb2_grpc, workflow_pb2, workflow_pb2_grpc


class InspectionClient(OperatorConnection):
    """Calls of `InspectionService`."""

    def __init__(self, endpoint: str | Sequence[str] = "") -> None:
        super().__init__(endpoint)
        self._stub: inspection_pb2_grpc.InspectionServiceAsyncStub = inspection_pb2_grpc.InspectionServiceStub(self._channel)

    async def workflows(self, limit: int = 100, workload: str = "") -> inspection_pb2.ListWorkflowsResponse:
        """Open workflows, at most 1,000, those that were heard of last first.

        Raises:
            InvalidArgument: names the field that is out of its range.
            Unavailable: the gateway is not reachable.
        """
        with typed_errors():
            return await self._stub.ListWorkflows(inspection_pb2.ListWorkflowsRequest(limit=limit, workload=workload))

    async def workflow(self, workflow_id: str) -> inspection_pb2.GetWorkflowResponse:
        """One open workflow with its steps.

        Raises:
            NotFound: it is not open.
        """
        with typed_errors():
            return await self._stub.GetWorkflow(inspection_pb2.GetWorkflowRequest(workflow_id=workflow_id))

    async def agents(self, limit: int = 100, workload: str = "") -> inspection_pb2.ListAgentsResponse:
        """Agents with the reuse of their prompts, at most 1,000 call sites; arguments and errors as for `workflows`."""
        with typed_errors():
            return await self._stub.ListAgents(inspection_pb2.ListAgentsRequest(limit=limit, workload=workload))

    async def check_index(self) -> inspection_pb2.CheckIndexResponse:
        """Compares the cluster index with what the workers hold.

        Raises:
            Unavailable: the gateway, Redis or a worker is not reachable.
        """
        with typed_errors():
            return await self._stub.CheckIndex(inspection_pb2.CheckIndexRequest())

    async def watch(self, with_token_ids: bool = False) -> AsyncIterator[inspection_pb2.WatchedEvent]:
        """What workflows do from now on, without end. The watch has begun when this returns.

        Args:
            with_token_ids: events of steps have the token ids of prompt and output, too.

        Raises:
            ResourceExhausted: too many watch, or events are read too slowly; the second while iterating.
            Unavailable: the gateway is not reachable, or no longer.
        """
        call = self._stub.WatchWorkflows(inspection_pb2.WatchWorkflowsRequest(with_token_ids=with_token_ids))
        with typed_errors():
            await call.initial_metadata()
            if call.done():  # it has failed: metadata that never came are none
                async for _ in call:
                    pass
        return self._events(call)

    @staticmethod
    async def _events(call: AsyncIterable[inspection_pb2.WatchedEvent]) -> AsyncIterator[inspection_pb2.WatchedEvent]:
        with typed_errors():
            async for event in call:
                yield event

    async def end_workflow(self, workflow_id: str) -> None:
        """Ends a workflow and cancels its steps.

        Raises:
            NotFound: it is not open.
        """
        with typed_errors():
            request = workflow_pb2.EndWorkflowRequest(workflow_id=workflow_id)
            await workflow_pb2_grpc.WorkflowServiceStub(self._channel).EndWorkflow(request)
