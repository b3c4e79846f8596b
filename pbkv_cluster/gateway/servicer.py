"""The front door: `WorkflowService` on the wire, each call handed to the part that does it."""

from collections.abc import AsyncIterator
from typing import Any

from grpc import aio

from pbkv_cluster.gateway.status import StatusReport
from pbkv_cluster.gateway.step.submission import Submission
from pbkv_cluster.gateway.workflow.lifecycle import Workflows
from pbkv_cluster.rpc.v1 import workflow_pb2, workflow_pb2_grpc

_Context = aio.ServicerContext[Any, Any]


class WorkflowServicer(workflow_pb2_grpc.WorkflowServiceServicer):
    """See proto/pbkv/v1/workflow.proto."""

    def __init__(self, workflows: Workflows, submission: Submission, status: StatusReport) -> None:
        self._workflows = workflows
        self._submission = submission
        self._status = status

    async def StartWorkflow(  # noqa: N802
        self, request: workflow_pb2.StartWorkflowRequest, context: _Context
    ) -> workflow_pb2.StartWorkflowResponse:
        session = await self._workflows.start(request)
        return workflow_pb2.StartWorkflowResponse(workflow_id=session.id, lease_s=session.lease_s)

    async def SubmitStep(  # noqa: N802
        self, request: workflow_pb2.SubmitStepRequest, context: _Context
    ) -> AsyncIterator[workflow_pb2.StepEvent]:
        step = self._submission.admit()
        # NOTE: a client that cancels while an event is on its way to it leaves the generator suspended; the callback is what
        # frees the step at once, whatever state the generator is in.
        context.add_done_callback(lambda _: self._submission.close(step))  # type: ignore[arg-type]  # the stubs want a class
        async for event in self._submission.run(step, request):
            yield event

    async def ReportToolCall(  # noqa: N802
        self, request: workflow_pb2.ReportToolCallRequest, context: _Context
    ) -> workflow_pb2.ReportToolCallResponse:
        await self._workflows.report_tool(request)
        return workflow_pb2.ReportToolCallResponse()

    async def EndWorkflow(  # noqa: N802
        self, request: workflow_pb2.EndWorkflowRequest, context: _Context
    ) -> workflow_pb2.EndWorkflowResponse:
        await self._workflows.end(await self._workflows.find(request.workflow_id))
        return workflow_pb2.EndWorkflowResponse()

    async def GetClusterStatus(  # noqa: N802
        self, request: workflow_pb2.GetClusterStatusRequest, context: _Context
    ) -> workflow_pb2.GetClusterStatusResponse:
        return await self._status.read()
