"""`WorkflowService` on the wire: messages to plain values, a call to the part that serves it, plain values to messages."""

import weakref
from collections.abc import AsyncGenerator, AsyncIterator
from dataclasses import replace
from typing import Any

from grpc import aio

from pbkv_cluster.core.usage import HitMeter
from pbkv_cluster.gateway.peers.everywhere import TIMEOUT_S
from pbkv_cluster.gateway.peers.link import is_passed_on
from pbkv_cluster.gateway.peers.merging import merge_status
from pbkv_cluster.gateway.status import ClusterStatus, StatusReader, WorkerStatus
from pbkv_cluster.gateway.step.request_wire import step_request_from_wire
from pbkv_cluster.gateway.step.step import Step
from pbkv_cluster.gateway.step.submission import Submission
from pbkv_cluster.gateway.workflow.calls import WorkflowCalls
from pbkv_cluster.gateway.workflow.requests import WorkflowRequest
from pbkv_cluster.rpc import convert
from pbkv_cluster.rpc.steps.step_calls import StepCalls
from pbkv_cluster.rpc.v1 import workflow_pb2, workflow_pb2_grpc

_Context = aio.ServicerContext[Any, Any]


class WorkflowServicer(workflow_pb2_grpc.WorkflowServiceServicer):
    """See proto/pbkv/v1/workflow.proto."""

    def __init__(self, workflows: WorkflowCalls, submission: Submission, status: StatusReader) -> None:
        self._workflows = workflows
        self._submission = submission
        self._status = status
        self.step_calls = StepCalls("SubmitSteps", self.SubmitStep, workflow_pb2.SubmitStepsResponse, keeps_deadlines=True)

    async def StartWorkflow(  # noqa: N802
        self, request: workflow_pb2.StartWorkflowRequest, context: _Context
    ) -> workflow_pb2.StartWorkflowResponse:
        workflow = await self._workflows.start(_workflow_request(request), passed_on=is_passed_on(context))
        return workflow_pb2.StartWorkflowResponse(workflow_id=workflow.id, lease_s=workflow.lease_s)

    async def SubmitStep(  # noqa: N802
        self, request: workflow_pb2.SubmitStepRequest, context: _Context
    ) -> AsyncGenerator[workflow_pb2.StepEvent, None]:
        step = self._submission.admit(request.ByteSize(), context.invocation_metadata())
        # NOTE: if the client cancels while an event is on its way to it, the generator stays suspended. The callback frees the
        # step at once, whatever state the generator is in. gRPC keeps callbacks until a full garbage collection.
        admitted = weakref.ref(step)
        context.add_done_callback(lambda _: self._close(admitted()))  # type: ignore[arg-type]  # the stubs want a class
        asked = replace(step_request_from_wire(request), timeout_s=context.time_remaining())
        async for event in self._submission.run(step, asked, passed_on=is_passed_on(context)):
            if (message := convert.gateway_event_to_wire(event)) is not None:
                yield message

    def _close(self, step: Step | None) -> None:
        if step is not None:
            self._submission.close(step)

    def SubmitSteps(  # noqa: N802
        self, requests: AsyncIterator[workflow_pb2.SubmitStepsRequest], context: _Context
    ) -> AsyncIterator[workflow_pb2.SubmitStepsResponse]:
        return self.step_calls.serve(requests, context)

    async def ReportToolCall(  # noqa: N802
        self, request: workflow_pb2.ReportToolCallRequest, context: _Context
    ) -> workflow_pb2.ReportToolCallResponse:
        call, started = convert.tool_call_from_wire(request)
        await self._workflows.report_tool(request.workflow_id, call, started, passed_on=is_passed_on(context))
        return workflow_pb2.ReportToolCallResponse()

    async def EndWorkflow(  # noqa: N802
        self, request: workflow_pb2.EndWorkflowRequest, context: _Context
    ) -> workflow_pb2.EndWorkflowResponse:
        await self._workflows.end(request.workflow_id, passed_on=is_passed_on(context))
        return workflow_pb2.EndWorkflowResponse()

    async def GetClusterStatus(  # noqa: N802
        self, request: workflow_pb2.GetClusterStatusRequest, context: _Context
    ) -> workflow_pb2.GetClusterStatusResponse:
        response = _status_response(await self._status.read())
        if not is_passed_on(context):
            everywhere = self._status.everywhere
            others = await everywhere.ask(lambda peer: peer.status(TIMEOUT_S))
            merge_status(response, everywhere.peers.incarnation, await everywhere.gateways(), others)
        return response


def _workflow_request(message: workflow_pb2.StartWorkflowRequest) -> WorkflowRequest:
    return WorkflowRequest(
        workflow_id=message.workflow_id,
        workload=message.workload,
        tenant=message.tenant,
        lease_s=message.lease_s,
        step_graph=convert.step_graph_from_wire(message.step_graph) if message.HasField("step_graph") else None,
    )


def _status_response(status: ClusterStatus) -> workflow_pb2.GetClusterStatusResponse:
    return workflow_pb2.GetClusterStatusResponse(
        cluster=status.cluster,
        model=status.model,
        workers=map(_worker, status.workers),
        open_workflows=status.open_workflows,
        running_steps=status.running_steps,
        predictor_reachable=status.predictor_reachable,
        predictor_address=status.predictor_address,
        index_reachable=status.index_reachable,
        discovery_url=status.discovery_url,
        dashboard_url=status.dashboard_url,
        totals=_totals(status.totals),
        decisions=status.decisions,
        members=[
            workflow_pb2.GetClusterStatusResponse.Member(
                name=member.name, up=member.up, restarts=member.restarts, last_failure=member.last_failure
            )
            for member in status.members
        ],
        nodes=[
            workflow_pb2.GetClusterStatusResponse.Node(
                node_id=node.node_id, host=node.host, state=node.state, reason=node.reason
            )
            for node in status.nodes
        ],
        problems=[
            workflow_pb2.GetClusterStatusResponse.Problem(member=entry.member, problem=problem)
            for entry in status.problems
            for problem in entry.problems
        ],
        reasons=[
            workflow_pb2.GetClusterStatusResponse.Reasons(member=entry.member, times=entry.reasons)
            for entry in status.problems
            if entry.reasons
        ],
        log_path=status.log_path,
        http_address=status.http_address,
    )


def _worker(status: WorkerStatus) -> workflow_pb2.GetClusterStatusResponse.Worker:
    message = workflow_pb2.GetClusterStatusResponse.Worker(
        worker_id=status.worker_id,
        node_id=status.node_id,
        address=status.address,
        reachable=status.report is not None,
        engine=status.engine,
    )
    if (report := status.report) is not None:
        message.store.CopyFrom(report.store)
        message.running, message.waiting = report.running, report.waiting
        if report.access_updates_applied is not None:
            message.access_updates_applied = report.access_updates_applied
        if report.access_workflows is not None:
            message.access_workflows = report.access_workflows
        message.predictor_reachable = report.predictor_reachable
    return message


def _totals(meter: HitMeter) -> workflow_pb2.GetClusterStatusResponse.Totals:
    return workflow_pb2.GetClusterStatusResponse.Totals(
        steps=meter.steps,
        prompt_tokens=meter.prompt_tokens,
        available_tokens=meter.available_tokens,
        captured=convert.tiers_to_wire(meter.captured),
        delivered=convert.tiers_to_wire(meter.delivered),
        computed_tokens=meter.computed_tokens,
        generated_tokens=meter.generated_tokens,
    )
