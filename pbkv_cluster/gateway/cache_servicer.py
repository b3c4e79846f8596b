"""`StoreService` of the gateway: what operators ask of all caches together, and clients of those that will run their steps."""

from collections.abc import Iterable, Sequence
from typing import Any

from pbkv_cluster.core.errors import FailedPrecondition, InvalidArgument, NotFound, Unavailable
from pbkv_cluster.core.security.caller import current_caller
from pbkv_cluster.core.workflow.tenant_ids import of_tenant
from pbkv_cluster.gateway import checks
from pbkv_cluster.gateway.routing.placement import Placement
from pbkv_cluster.gateway.routing.worker_pool import WorkerPool
from pbkv_cluster.gateway.step.admission.counted_prompts import CountedPrompts
from pbkv_cluster.gateway.step.prompt_reader import TokenizedPrompt
from pbkv_cluster.gateway.step.prompt_wire import prompt_from_wire
from pbkv_cluster.gateway.workflow.entry_writer import EntryWriter, not_open
from pbkv_cluster.gateway.workflow.lifecycle import check_tenant
from pbkv_cluster.gateway.workflow.open_workflows import OpenWorkflow, OpenWorkflows
from pbkv_cluster.rpc.v1 import store_pb2, types_pb2
from pbkv_cluster.store.cluster_index import OUR_ENGINE
from pbkv_cluster.store.fan_out import WorkersServicer, call_worker

_WORKER_TIMEOUT_S = 30.0


class CacheServicer(WorkersServicer):
    """Passes calls on to every worker that the gateway knows, or to the one that a step would go to."""

    def __init__(
        self,
        pool: WorkerPool,
        placement: Placement,
        prompts: CountedPrompts,
        workflows: OpenWorkflows,
        entries: EntryWriter,
        lease_max_s: float,
    ) -> None:
        """Args:
        pool: the workers.
        placement: where a step would go.
        prompts: reads prompts, of which each counts as a step meanwhile.
        workflows: that this gateway holds.
        entries: of those that others hold.
        lease_max_s: most seconds of a block lease.
        """
        super().__init__(_WORKER_TIMEOUT_S)
        self._pool = pool
        self._placement = placement
        self._prompts = prompts
        self._workflows = workflows
        self._entries = entries
        self._lease_max_s = lease_max_s

    async def Prefetch(self, request: store_pb2.PrefetchRequest, context: Any) -> store_pb2.PrefetchResponse:  # noqa: N802
        workflow = _workflow(request.workflow_id)
        agent = checks.name("agent_id", request.agent_id)
        within_s = checks.seconds("within_s", request.within_s, self._lease_max_s)
        if not workflow and not request.HasField("prompt"):
            raise InvalidArgument("prompt", "a prompt or a workflow_id must be set")
        tenant = await self._tenant(workflow, request.tenant)
        if not request.HasField("prompt"):
            if within_s:
                raise InvalidArgument("within_s", "needs a prompt, whose blocks are leased")
            return await super().Prefetch(
                store_pb2.PrefetchRequest(workflow_id=workflow, agent_id=agent, tenant=tenant), context
            )
        if agent:
            raise InvalidArgument("agent_id", "chooses among what a workflow has used, and is of no use with a prompt")
        opened = self._workflows.peek(workflow)
        read = await self._read(request.prompt, tenant, workflow)
        live = self._pool.live()
        if not live:
            raise Unavailable("there is no worker")
        last = None if opened is None else opened.last_worker
        able = [worker for worker in live if worker.entry.engine == OUR_ENGINE] or live  # or the refusal says why not
        worker = (await self._placement.choose(able, read.keys, last, workflow, counted=False)).worker
        if within_s:
            _begin_leases(opened, [worker.id])
        asked = store_pb2.PrefetchRequest(prompt=_tokens(read), tenant=tenant, workflow_id=workflow, within_s=within_s)
        answer = await call_worker(worker.entry.address, lambda stub: stub.Prefetch(asked), _WORKER_TIMEOUT_S)
        if answer.lease_id:
            answer.tenant = tenant
            await self._end_if_over(opened, answer.lease_id, tenant, context)
        return answer

    async def LeaseBlocks(  # noqa: N802
        self, request: store_pb2.LeaseBlocksRequest, context: Any
    ) -> store_pb2.LeaseBlocksResponse:
        lease_id = checks.required_name("lease_id", request.lease_id)
        workflow = _workflow(request.workflow_id)
        lease_s = checks.seconds("lease_s", request.lease_s, self._lease_max_s)
        if not lease_s:
            raise InvalidArgument("lease_s", "must be more than 0 seconds")
        tenant = await self._tenant(workflow, request.tenant)
        opened = self._workflows.peek(workflow)
        read = await self._read(request.prompt, tenant, workflow)
        _begin_leases(opened, [worker.id for worker in self._pool.known()])
        asked = store_pb2.LeaseBlocksRequest(
            lease_id=lease_id, prompt=_tokens(read), tenant=tenant, workflow_id=workflow, lease_s=lease_s
        )
        answer = await super().LeaseBlocks(asked, context)
        answer.tenant = tenant
        await self._end_if_over(opened, lease_id, tenant, context)
        return answer

    async def ReleaseBlocks(  # noqa: N802
        self, request: store_pb2.ReleaseBlocksRequest, context: Any
    ) -> store_pb2.ReleaseBlocksResponse:
        lease_id = checks.required_name("lease_id", request.lease_id)
        tenant = await self._tenant("", request.tenant)
        return await super().ReleaseBlocks(store_pb2.ReleaseBlocksRequest(lease_id=lease_id, tenant=tenant), context)

    async def _tenant(self, workflow: str, asked: str) -> str:
        """The tenant whose blocks a request is about.

        Raises:
            NotFound: the workflow is not open, or not the caller's.
            PermissionDenied: the tenant is not the caller's.
        """
        tenant = current_caller().tenant_of(checks.name("tenant", asked))
        if not workflow:
            return tenant
        opened = self._workflows.peek(workflow)
        own = opened.tenant if opened is not None else (await self._entries.find(workflow)).tenant
        check_tenant(workflow, own)
        return tenant or own

    async def _end_if_over(self, workflow: OpenWorkflow | None, lease_id: str, tenant: str, context: Any) -> None:
        """Ends a lease if its workflow has ended while it began: workers may have heard of the end before.

        Raises:
            NotFound: it has.
        """
        if _has_ended(workflow):
            await super().ReleaseBlocks(store_pb2.ReleaseBlocksRequest(lease_id=lease_id, tenant=tenant), context)
            _check_open(workflow)

    async def _read(self, prompt: types_pb2.Prompt, tenant: str, workflow: str) -> TokenizedPrompt:
        return await self._prompts.read(prompt_from_wire(prompt), prompt.ByteSize(), tenant, workflow)

    async def LeaseArena(  # noqa: N802
        self, request: store_pb2.LeaseArenaRequest, context: Any
    ) -> store_pb2.LeaseArenaResponse:
        raise FailedPrecondition("a gateway has no arena; ask the node's host store")

    async def worker_addresses(self) -> Sequence[str]:
        """Raises:
        Unavailable: there is no worker.
        """
        addresses = [worker.entry.address for worker in self._pool.known()]
        if not addresses:
            raise Unavailable("there is no worker")
        return addresses


def _workflow(asked: str) -> str:
    """The id by which all of the cluster knows a workflow of the caller's; empty: none."""
    return checks.name("workflow_id", of_tenant(asked, current_caller().tenant))


def _tokens(read: TokenizedPrompt) -> types_pb2.Prompt:
    return types_pb2.Prompt(token_ids=types_pb2.PackedTokens(data=read.packed))


def _begin_leases(workflow: OpenWorkflow | None, workers: Iterable[str]) -> None:
    """Has workers told of the end of a workflow, with which leases end; not if another gateway holds it.

    They have not run a step of it, and so are no subscribers to its forecasts.

    Raises:
        NotFound: it has ended.
    """
    _check_open(workflow)
    if workflow is not None:
        workflow.leased_on.update(workers)


def _check_open(workflow: OpenWorkflow | None) -> None:
    if workflow is not None and _has_ended(workflow):
        raise NotFound(not_open(workflow.id))


def _has_ended(workflow: OpenWorkflow | None) -> bool:
    """Not of one that another gateway holds now."""
    return workflow is not None and workflow.ended and not workflow.moved
