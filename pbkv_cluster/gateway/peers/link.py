"""Calls to another gateway, which holds the workflow that they are about."""

from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import grpc
from grpc import aio

from pbkv_cluster.core.security.caller import Caller, current_caller, note_caller
from pbkv_cluster.core.workflow.step_events import GatewayEvent
from pbkv_cluster.rpc import convert
from pbkv_cluster.rpc.channel import connect
from pbkv_cluster.rpc.errors import from_rpc, is_unanswered
from pbkv_cluster.rpc.v1 import inspection_pb2, inspection_pb2_grpc, workflow_pb2, workflow_pb2_grpc

if TYPE_CHECKING:
    from pbkv_cluster.rpc.v1.inspection_pb2_grpc import InspectionServiceAsyncStub
    from pbkv_cluster.rpc.v1.workflow_pb2_grpc import WorkflowServiceAsyncStub

_PASSED_ON = "pbkv-passed-on"  # metadata of a call that comes from another gateway
_TENANT = "pbkv-tenant-bin"  # the tenant whose call it is; absent: an operator's, or no keys are asked for
_TIMEOUT_S = 10.0  # of a call that is not a step
# How a call ends whose server is killed, or shuts down.
_GONE = frozenset({grpc.StatusCode.UNKNOWN, grpc.StatusCode.CANCELLED, grpc.StatusCode.ABORTED})


class PeerLost(Exception):
    """The gateway that was called, or the way to it, is gone."""


def is_passed_on(context: aio.ServicerContext[Any, Any]) -> bool:
    """Whether a call comes from another gateway. Such a call is served here or refused: it does not go round in circles.

    It runs for the tenant whose call the other gateway passes on.
    """
    metadata = dict(context.invocation_metadata() or ())
    if _PASSED_ON not in metadata:
        return False
    tenant = metadata.get(_TENANT)
    if isinstance(tenant, bytes) and current_caller().is_operator:  # nobody else may speak for another
        note_caller(Caller(tenant.decode()))
    return True


class PeerLink:
    """One gateway, in one incarnation. Calls raise PeerLost, or the error that the other gateway has raised."""

    def __init__(self, address: str) -> None:
        self._channel = connect(address)
        self._stub: WorkflowServiceAsyncStub = workflow_pb2_grpc.WorkflowServiceStub(self._channel)
        self._inspection: InspectionServiceAsyncStub = inspection_pb2_grpc.InspectionServiceStub(self._channel)

    async def close(self) -> None:
        await self._channel.close()

    async def start(self, request: workflow_pb2.StartWorkflowRequest) -> workflow_pb2.StartWorkflowResponse:
        with self._errors():
            return await self._stub.StartWorkflow(request, timeout=_TIMEOUT_S, metadata=passed_on())

    async def report_tool(self, request: workflow_pb2.ReportToolCallRequest) -> None:
        with self._errors():
            await self._stub.ReportToolCall(request, timeout=_TIMEOUT_S, metadata=passed_on())

    async def end(self, workflow_id: str) -> None:
        request = workflow_pb2.EndWorkflowRequest(workflow_id=workflow_id)
        with self._errors():
            await self._stub.EndWorkflow(request, timeout=_TIMEOUT_S, metadata=passed_on())

    async def status(self, timeout_s: float) -> workflow_pb2.GetClusterStatusResponse:
        """What the other gateway knows by itself."""
        with self._errors():
            request = workflow_pb2.GetClusterStatusRequest()
            return await self._stub.GetClusterStatus(request, timeout=timeout_s, metadata=passed_on())

    async def list_workflows(
        self, request: inspection_pb2.ListWorkflowsRequest, timeout_s: float
    ) -> inspection_pb2.ListWorkflowsResponse:
        """The workflows that the other gateway holds."""
        with self._errors():
            return await self._inspection.ListWorkflows(request, timeout=timeout_s, metadata=passed_on())

    async def workflow(
        self, request: inspection_pb2.GetWorkflowRequest, timeout_s: float
    ) -> inspection_pb2.GetWorkflowResponse:
        """One of these; NotFound: the other gateway does not hold it."""
        with self._errors():
            return await self._inspection.GetWorkflow(request, timeout=timeout_s, metadata=passed_on())

    async def list_agents(
        self, request: inspection_pb2.ListAgentsRequest, timeout_s: float
    ) -> inspection_pb2.ListAgentsResponse:
        """What the other gateway knows of agents."""
        with self._errors():
            return await self._inspection.ListAgents(request, timeout=timeout_s, metadata=passed_on())

    def submit(
        self, request: workflow_pb2.SubmitStepRequest, metadata: Sequence[tuple[str, str]], timeout_s: float | None
    ) -> "PeerStream":
        """Sends a step, which the other gateway gives up after `timeout_s` seconds (None: never); returns at once."""
        return PeerStream(self._stub.SubmitStep(request, metadata=passed_on(*metadata), timeout=timeout_s))

    @staticmethod
    @contextmanager
    def _errors() -> Iterator[None]:
        try:
            yield
        except aio.AioRpcError as error:
            raise _failure(error) from error


class PeerStream:
    """A step that another gateway runs. Iterate once."""

    def __init__(self, call: Any) -> None:
        self._call = call

    def cancel(self) -> None:
        """Has the other gateway free what the step holds. Harmless when repeated."""
        self._call.cancel()

    async def __aiter__(self) -> AsyncIterator[GatewayEvent]:
        try:
            async for message in self._call:
                event = convert.gateway_event_from_wire(message)
                if event is not None:
                    yield event
        except aio.AioRpcError as error:
            raise _failure(error) from error


def passed_on(*metadata: tuple[str, str]) -> tuple[tuple[str, str | bytes], ...]:
    """Metadata of a call to another gateway."""
    tenant = current_caller().tenant
    return (*metadata, (_PASSED_ON, "1"), *([(_TENANT, tenant.encode())] if tenant else []))


def _failure(error: aio.AioRpcError) -> Exception:
    if is_unanswered(error) or error.code() in _GONE:
        return PeerLost(error.details() or error.code().name)
    return from_rpc(error)
