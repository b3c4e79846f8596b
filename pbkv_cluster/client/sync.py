"""The client for code without asyncio: the calls of `aio`, blocking. Safe to use from several threads, and after a fork.

gRPC itself survives a fork that happens while other threads call it only with `GRPC_ENABLE_FORK_SUPPORT=1` in the environment
when the process starts. Processes that are spawned need nothing.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from types import TracebackType
from typing import Self, Unpack

from pbkv_cluster.client import requests
from pbkv_cluster.client.arguments import known_arguments
from pbkv_cluster.client.blocks import BlockLease, Prefetched, lease_request, prefetch_request, prefetched
from pbkv_cluster.client.connection import Connection, access
from pbkv_cluster.client.requests import Prompt, StepOptions
from pbkv_cluster.client.results import StepResult, collect
from pbkv_cluster.core.errors import NotFound, PbkvError
from pbkv_cluster.core.workflow.step_events import StepEvent
from pbkv_cluster.core.workflow.step_graph import StepGraph
from pbkv_cluster.core.workflow.tool_call import ToolCall
from pbkv_cluster.rpc.convert import tool_call_to_wire
from pbkv_cluster.rpc.v1 import store_pb2, workflow_pb2


class Client:
    """A connection to the gateways of a cluster, used as `AsyncClient` is; a context manager that closes it."""

    @known_arguments
    def __init__(
        self, endpoint: str | Sequence[str] = "", *, timeout_s: float = 30.0, api_key: str = "", tls_ca: str = ""
    ) -> None:
        """Arguments and errors as for `AsyncClient`."""
        self._connection = Connection(endpoint, timeout_s, access(api_key, tls_ca))

    @known_arguments
    def start_workflow(
        self,
        workflow_id: str = "",
        *,
        workload: str = "",
        tenant: str = "",
        lease_s: float = 0.0,
        step_graph: StepGraph | None = None,
    ) -> "Workflow":
        """Opens a workflow, or finds the open one of that id. Arguments and errors as for `AsyncClient.start_workflow`."""
        request = requests.start_request(workflow_id, workload, tenant, lease_s, step_graph)
        opened = self._connection.call("StartWorkflow", request)
        return Workflow(self._connection, opened.workflow_id, opened.lease_s)

    @known_arguments
    def prefetch(
        self,
        prompt: Prompt | None = None,
        *,
        workflow_id: str = "",
        agent: str = "",
        tenant: str = "",
        within_s: float = 0.0,
    ) -> Prefetched:
        """Has what is cached of a prompt loaded to a GPU. Arguments and errors as for `AsyncClient.prefetch`."""
        request = prefetch_request(prompt, tenant, workflow_id, agent, within_s)
        return prefetched(self._connection.call("Prefetch", request))

    @known_arguments
    def lease_blocks(self, prompt: Prompt, *, lease_s: float, tenant: str = "", lease_id: str = "") -> BlockLease:
        """Asks that what is cached of a prompt stays cached. Arguments and errors as for `AsyncClient.lease_blocks`."""
        request = lease_request(prompt, lease_s, tenant, "", lease_id)
        answer: store_pb2.LeaseBlocksResponse = self._connection.call("LeaseBlocks", request)
        return BlockLease(self._connection, request.lease_id, answer.tenant, answer.cached_tokens, answer.leased_tokens)

    @known_arguments
    def release_blocks(self, lease_id: str, *, tenant: str = "") -> int:
        """Ends a lease by its id. Arguments and errors as for `AsyncClient.release_blocks`."""
        return BlockLease(self._connection, lease_id, tenant, 0, 0).release()

    def status(self) -> workflow_pb2.GetClusterStatusResponse:
        """What runs where, and how well the cache does, since the gateways started.

        Raises:
            Unavailable: the gateway is not reachable.
        """
        answer: workflow_pb2.GetClusterStatusResponse = self._connection.call(
            "GetClusterStatus", workflow_pb2.GetClusterStatusRequest()
        )
        return answer

    def close(self) -> None:
        """Closes the connection; running steps are cancelled."""
        self._connection.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


class Workflow:
    """An open workflow; a context manager that ends it."""

    def __init__(self, connection: Connection, workflow_id: str, lease_s: float) -> None:
        self._connection = connection
        self.id = workflow_id
        self.lease_s = lease_s

    @known_arguments
    def stream(self, *, agent: str, prompt: Prompt, **options: Unpack[StepOptions]) -> Iterator[StepEvent]:
        """Runs one step and yields its events: one Accepted, Tokens as they are generated, one Finished.

        Closing the iterator cancels the step. Arguments and errors as for `AsyncWorkflow.stream`.
        """
        request = requests.step_request(self.id, agent, prompt, options)
        yield from self._connection.step(request, options.get("timeout_s"))

    @known_arguments
    def run(self, *, agent: str, prompt: Prompt, **options: Unpack[StepOptions]) -> StepResult:
        """Runs one step to its end; arguments and errors as for `AsyncWorkflow.stream`."""
        return collect(self.stream(agent=agent, prompt=prompt, **options))

    @known_arguments
    @contextmanager
    def tool(self, name: str, expected_s: float | None = None) -> Iterator[None]:
        """Reports a tool call that lasts as long as the body runs. Arguments and errors as for `AsyncWorkflow.tool`."""
        call_id = requests.new_call_id()
        self._report(name, call_id, True, expected_s)
        try:
            yield
        finally:
            self._report(name, call_id, False, None)

    @known_arguments
    def prefetch(self, prompt: Prompt | None = None, *, agent: str = "", within_s: float = 0.0) -> Prefetched:
        """Has blocks loaded to a GPU before a step uses them. Arguments and errors as for `AsyncWorkflow.prefetch`."""
        return prefetched(self._connection.call("Prefetch", prefetch_request(prompt, "", self.id, agent, within_s)))

    @known_arguments
    def lease_blocks(self, prompt: Prompt, *, lease_s: float, lease_id: str = "") -> BlockLease:
        """Leases what is cached of a prompt. Arguments and errors as for `AsyncWorkflow.lease_blocks`."""
        request = lease_request(prompt, lease_s, "", self.id, lease_id)
        answer: store_pb2.LeaseBlocksResponse = self._connection.call("LeaseBlocks", request)
        return BlockLease(self._connection, request.lease_id, answer.tenant, answer.cached_tokens, answer.leased_tokens)

    def end(self) -> None:
        """Ends the workflow and cancels its steps.

        Raises:
            NotFound: it has ended already.
            Unavailable: the gateway is not reachable.
        """
        self._connection.call("EndWorkflow", workflow_pb2.EndWorkflowRequest(workflow_id=self.id))

    def _report(self, tool: str, call_id: str, started: bool, expected_s: float | None) -> None:
        self._connection.call("ReportToolCall", tool_call_to_wire(self.id, ToolCall(tool, call_id, expected_s), started))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        # As in `AsyncWorkflow.__aexit__`.
        with suppress(NotFound if error is None else PbkvError):
            self.end()
