"""A gateway's front, without a cluster: it counts calls, and refuses some as a gateway does that is ending."""

import threading
from collections.abc import Iterator
from concurrent import futures
from contextlib import contextmanager

import grpc

from pbkv_cluster.rpc.v1 import types_pb2, workflow_pb2, workflow_pb2_grpc


class FlakyGateway(workflow_pb2_grpc.WorkflowServiceServicer):
    def __init__(self, refusals: int = 0, *, final: bool = False) -> None:
        """Args:
        refusals: number of calls that are refused before one is taken.
        final: steps are refused as those are that no gateway can run.
        """
        self.final = final
        self.refusals = refusals
        self.started: list[str] = []
        self.steps: list[str] = []  # ids

    def StartWorkflow(  # noqa: N802
        self, request: workflow_pb2.StartWorkflowRequest, context: grpc.ServicerContext
    ) -> workflow_pb2.StartWorkflowResponse:
        self.started.append(request.workflow_id)
        if len(self.started) <= self.refusals:
            context.abort(grpc.StatusCode.UNAVAILABLE, "ending")
        return workflow_pb2.StartWorkflowResponse(workflow_id=request.workflow_id, lease_s=1)

    def SubmitStep(  # noqa: N802
        self, request: workflow_pb2.SubmitStepRequest, context: grpc.ServicerContext
    ) -> Iterator[workflow_pb2.StepEvent]:
        self.steps.append(request.step_id)
        if self.final:
            context.set_trailing_metadata((("pbkv-answer", "final"),))
        context.abort(grpc.StatusCode.UNAVAILABLE, "ending")

    def SubmitSteps(  # noqa: N802
        self, request_iterator: Iterator[workflow_pb2.SubmitStepsRequest], context: grpc.ServicerContext
    ) -> Iterator[workflow_pb2.SubmitStepsResponse]:
        for request in request_iterator:
            for action in request.actions:
                self.steps.append(action.begin.step.step_id)
                trailing = [types_pb2.Header(key="pbkv-answer", value="final")] if self.final else []
                end = types_pb2.CallEnd(code=grpc.StatusCode.UNAVAILABLE.value[0], details="ending", trailing=trailing)
                yield workflow_pb2.SubmitStepsResponse(
                    events=[workflow_pb2.SubmitStepsResponse.Event(call=action.call, end=end)]
                )

    def ReportToolCall(  # noqa: N802
        self, request: workflow_pb2.ReportToolCallRequest, context: grpc.ServicerContext
    ) -> workflow_pb2.ReportToolCallResponse:
        return workflow_pb2.ReportToolCallResponse()

    def EndWorkflow(  # noqa: N802
        self, request: workflow_pb2.EndWorkflowRequest, context: grpc.ServicerContext
    ) -> workflow_pb2.EndWorkflowResponse:
        return workflow_pb2.EndWorkflowResponse()

    def GetClusterStatus(  # noqa: N802
        self, request: workflow_pb2.GetClusterStatusRequest, context: grpc.ServicerContext
    ) -> workflow_pb2.GetClusterStatusResponse:
        """Answers nobody: returns when the caller has gone."""
        gone = threading.Event()
        context.add_callback(gone.set)
        gone.wait()
        return workflow_pb2.GetClusterStatusResponse()


@contextmanager
def served(gateway: FlakyGateway) -> Iterator[str]:
    """Serves at the address that is returned until the context ends."""
    server = grpc.server(futures.ThreadPoolExecutor(4))
    workflow_pb2_grpc.add_WorkflowServiceServicer_to_server(gateway, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        server.stop(None).wait()
