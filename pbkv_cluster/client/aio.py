"""The client for asyncio."""

from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing, asynccontextmanager, suppress
from types import TracebackType
from typing import Self, Unpack

from pbkv_cluster.client import requests
from pbkv_cluster.client.arguments import known_arguments
from pbkv_cluster.client.blocks import AsyncBlockLease, Prefetched, lease_request, prefetch_request, prefetched
from pbkv_cluster.client.connection import AsyncConnection, access
from pbkv_cluster.client.requests import Prompt, StepOptions
from pbkv_cluster.client.results import Collector, StepResult
from pbkv_cluster.core.errors import NotFound, PbkvError
from pbkv_cluster.core.workflow.step_events import StepEvent
from pbkv_cluster.core.workflow.step_graph import StepGraph
from pbkv_cluster.core.workflow.tool_call import ToolCall
from pbkv_cluster.rpc.convert import tool_call_to_wire
from pbkv_cluster.rpc.v1 import store_pb2, workflow_pb2


class AsyncClient:
    """A connection to the gateways of a cluster; a context manager that closes it. Calls raise the errors of `core.errors`.

    A call whose gateway is gone is made again, at the next gateway, if there are several; for some 1.5 s, and a step whose
    output has begun to come for some 12 s. A step goes on from what has come: nothing is missing or repeated.
    """

    @known_arguments
    def __init__(
        self,
        endpoint: str | Sequence[str] = "",
        *,
        timeout_s: float = 30.0,
        api_key: str = "",
        tls_ca: str = "",
        direct: bool = True,
    ) -> None:
        """Args:
        endpoint: host:port of a gateway, or of several: a sequence, or a text with commas. By default those that the
            environment's PBKV_ADDRESS names, or 127.0.0.1:26100. The first call connects.
        timeout_s: seconds that a call may take that is not a step, with all its attempts; a step has a limit of its own.
        api_key: that of a tenant, or of an operator, where the cluster asks for one.
        tls_ca: file of the certificates that the gateway's may be signed by, or "system": those of this machine; empty: no TLS.
        direct: take the output of steps straight from workers, where this process can reach them; else through the gateway.

        Raises:
            InvalidArgument: names the argument that is out of its range.
        """
        self._connection = AsyncConnection(endpoint, timeout_s, access(api_key, tls_ca), direct)

    @known_arguments
    async def start_workflow(
        self,
        workflow_id: str = "",
        *,
        workload: str = "",
        tenant: str = "",
        lease_s: float = 0.0,
        step_graph: StepGraph | None = None,
    ) -> "AsyncWorkflow":
        """Opens a workflow, or finds the open one of that id.

        Args:
            workflow_id: at most 256 bytes, 239 with a tenant, whose ids are its own; by default one is drawn.
            workload: name of the application; workflows of one workload are learnt from together.
            tenant: cached blocks are never shared between tenants.
            lease_s: seconds of silence after which the workflow is ended; 0: the gateway's default.
            step_graph: which agents may follow which, for policies and experts that use it.

        Raises:
            InvalidArgument: names the field that is out of its range, or in which the open workflow differs.
            ResourceExhausted: too many workflows are open.
            Unavailable: the gateway is not reachable.
        """
        request = requests.start_request(workflow_id, workload, tenant, lease_s, step_graph)
        opened = await self._connection.call("StartWorkflow", request)
        return AsyncWorkflow(self._connection, opened.workflow_id, opened.lease_s)

    @known_arguments
    async def prefetch(
        self,
        prompt: Prompt | None = None,
        *,
        workflow_id: str = "",
        agent: str = "",
        tenant: str = "",
        within_s: float = 0.0,
    ) -> Prefetched:
        """Has what is cached of a prompt loaded to the GPU of the worker that a step with it would go to now.

        It takes free space and that of ended workflows only. What other workers have of the prompt is copied as well, where
        that is faster than to compute it.

        Args:
            prompt: as for a step.
            workflow_id: that the step is of. Without a prompt, what it has used is loaded, what is worth most first.
            agent: without a prompt: only what this agent has used, whose step is the next.
            tenant: whose cached blocks the prompt shares; of a workflow, by default its own.
            within_s: seconds within which a step will use the prompt, whose blocks are leased for so long, see `lease_blocks`.

        Raises:
            InvalidArgument: names the field that is out of its range.
            NotFound: the workflow is not open.
            Unavailable: the gateway or a worker is not reachable.
        """
        request = prefetch_request(prompt, tenant, workflow_id, agent, within_s)
        return prefetched(await self._connection.call("Prefetch", request))

    @known_arguments
    async def lease_blocks(self, prompt: Prompt, *, lease_s: float, tenant: str = "", lease_id: str = "") -> AsyncBlockLease:
        """Asks that what is cached of a prompt stays cached for a while. Leased blocks are the last to be evicted.

        They are evicted all the same where steps need the room, and only so many are leased as the tenant's share allows: the
        first of the prompt, see the answer.

        Args:
            prompt: as for a step.
            lease_s: seconds until the lease expires, more than 0 and at most `cache.lease_max_s`.
            tenant: whose cached blocks they are.
            lease_id: at most 256 bytes; takes the place of the tenant's earlier lease with this id; by default one is drawn.

        Raises:
            InvalidArgument: names the field that is out of its range.
            Unavailable: the gateway or a worker is not reachable.
        """
        request = lease_request(prompt, lease_s, tenant, "", lease_id)
        answer: store_pb2.LeaseBlocksResponse = await self._connection.call("LeaseBlocks", request)
        return AsyncBlockLease(self._connection, request.lease_id, answer.tenant, answer.cached_tokens, answer.leased_tokens)

    @known_arguments
    async def release_blocks(self, lease_id: str, *, tenant: str = "") -> int:
        """Ends a lease by its id. Returns the tokens that it was for and that are cached still; 0 if it has ended already.

        Raises:
            InvalidArgument: names the field that is out of its range.
            Unavailable: the gateway or a worker is not reachable.
        """
        return await AsyncBlockLease(self._connection, lease_id, tenant, 0, 0).release()

    async def status(self) -> workflow_pb2.GetClusterStatusResponse:
        """What runs where, and how well the cache does, since the gateways started.

        Raises:
            Unavailable: the gateway is not reachable.
        """
        answer: workflow_pb2.GetClusterStatusResponse = await self._connection.call(
            "GetClusterStatus", workflow_pb2.GetClusterStatusRequest()
        )
        return answer

    async def close(self) -> None:
        """Closes the connection; running steps are cancelled."""
        await self._connection.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()


class AsyncWorkflow:
    """An open workflow; a context manager that ends it."""

    def __init__(self, connection: AsyncConnection, workflow_id: str, lease_s: float) -> None:
        self._connection = connection
        self.id = workflow_id
        self.lease_s = lease_s

    @known_arguments
    async def stream(self, *, agent: str, prompt: Prompt, **options: Unpack[StepOptions]) -> AsyncGenerator[StepEvent, None]:
        """Runs one step and yields its events: one Accepted, Tokens as they are generated, one Finished.

        Closing the iterator cancels the step.

        Args:
            agent: name of the agent that calls the model.
            prompt: text, chat messages (role and content), token ids, or packed int32 token ids as bytes.
            options: see `StepOptions`.

        Raises:
            TypeError: an option does not exist; names the nearest that does.
            InvalidArgument: a value is out of its range; names the field.
            NotFound: the workflow has ended.
            ResourceExhausted: the queues are full.
            Unavailable: no worker or no gateway is reachable.
            DeadlineExceeded: the step took longer than `timeout_s`.
        """
        request = requests.step_request(self.id, agent, prompt, options)
        async with aclosing(self._connection.step(request, options.get("timeout_s"))) as events:
            async for event in events:
                yield event

    @known_arguments
    async def run(self, *, agent: str, prompt: Prompt, **options: Unpack[StepOptions]) -> StepResult:
        """Runs one step to its end; arguments and errors as for `stream`."""
        collector = Collector()
        async for event in self.stream(agent=agent, prompt=prompt, **options):
            collector.add(event)
        return collector.result()

    @known_arguments
    @asynccontextmanager
    async def tool(self, name: str, expected_s: float | None = None) -> AsyncIterator[None]:
        """Reports a tool call that lasts as long as the body runs.

        Args:
            name: of the tool.
            expected_s: seconds that the call is expected to take.

        Raises:
            InvalidArgument: a value is out of its range; names the field.
            NotFound: the workflow has ended.
            Unavailable: the gateway is not reachable.
        """
        call_id = requests.new_call_id()
        await self._report(name, call_id, True, expected_s)
        try:
            yield
        finally:
            await self._report(name, call_id, False, None)

    @known_arguments
    async def prefetch(self, prompt: Prompt | None = None, *, agent: str = "", within_s: float = 0.0) -> Prefetched:
        """Has blocks loaded to a GPU before a step of this workflow uses them, as `AsyncClient.prefetch` does.

        Args:
            prompt: that the next step will begin with; None: what the workflow has used, what is worth most first.
            agent: without a prompt: only what this agent has used, whose step is the next.
            within_s: seconds within which a step will use the prompt, whose blocks are leased for so long.

        Raises:
            InvalidArgument: names the field that is out of its range.
            NotFound: the workflow has ended.
            Unavailable: the gateway or a worker is not reachable.
        """
        request = prefetch_request(prompt, "", self.id, agent, within_s)
        return prefetched(await self._connection.call("Prefetch", request))

    @known_arguments
    async def lease_blocks(self, prompt: Prompt, *, lease_s: float, lease_id: str = "") -> AsyncBlockLease:
        """Leases what is cached of a prompt, as `AsyncClient.lease_blocks` does; at most until the workflow ends.

        Arguments and errors as there.

        Raises:
            NotFound: the workflow has ended.
        """
        request = lease_request(prompt, lease_s, "", self.id, lease_id)
        answer: store_pb2.LeaseBlocksResponse = await self._connection.call("LeaseBlocks", request)
        return AsyncBlockLease(self._connection, request.lease_id, answer.tenant, answer.cached_tokens, answer.leased_tokens)

    async def end(self) -> None:
        """Ends the workflow and cancels its steps.

        Raises:
            NotFound: it has ended already; also where a gateway ended it and died before its answer.
            Unavailable: the gateway is not reachable.
        """
        await self._connection.call("EndWorkflow", workflow_pb2.EndWorkflowRequest(workflow_id=self.id))

    async def _report(self, tool: str, call_id: str, started: bool, expected_s: float | None) -> None:
        await self._connection.call("ReportToolCall", tool_call_to_wire(self.id, ToolCall(tool, call_id, expected_s), started))

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # A workflow that has ended already is no error. An error of the body matters more than one of ending the workflow,
        # which its lease does in any case.
        with suppress(NotFound if error is None else PbkvError):
            await self.end()
