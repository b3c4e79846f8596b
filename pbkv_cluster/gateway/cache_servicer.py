"""`StoreService` of the gateway: what operators ask of all caches of the cluster together."""

from collections.abc import Sequence
from typing import Any

from pbkv_cluster.core.errors import FailedPrecondition, InvalidArgument, Unavailable
from pbkv_cluster.gateway import checks
from pbkv_cluster.gateway.routing.worker_pool import WorkerPool
from pbkv_cluster.gateway.step.prompt_reader import PromptReader
from pbkv_cluster.gateway.step.prompt_wire import prompt_from_wire
from pbkv_cluster.gateway.workflow.entry_writer import EntryWriter
from pbkv_cluster.gateway.workflow.open_workflows import OpenWorkflows
from pbkv_cluster.rpc.v1 import store_pb2, types_pb2
from pbkv_cluster.store.fan_out import WorkersServicer

_WORKER_TIMEOUT_S = 30.0


class CacheServicer(WorkersServicer):
    """Passes calls on to every worker that the gateway knows."""

    def __init__(self, pool: WorkerPool, prompts: PromptReader, workflows: OpenWorkflows, entries: EntryWriter) -> None:
        super().__init__(_WORKER_TIMEOUT_S)
        self._pool = pool
        self._prompts = prompts
        self._workflows = workflows
        self._entries = entries

    async def Prefetch(self, request: store_pb2.PrefetchRequest, context: Any) -> store_pb2.PrefetchResponse:  # noqa: N802
        workflow = checks.name("workflow_id", request.workflow_id)
        if bool(workflow) == request.HasField("prompt"):
            raise InvalidArgument("prompt", "either a prompt or a workflow_id must be set")
        if workflow:
            if self._workflows.peek(workflow) is None:
                await self._entries.find(workflow)  # another gateway may hold it
            return await super().Prefetch(request, context)
        limits = self._pool.limits()
        if limits is None:
            raise Unavailable("there is no worker")
        tenant = checks.name("tenant", request.tenant)
        read = await self._prompts.read(prompt_from_wire(request.prompt), limits, tenant)
        prompt = types_pb2.Prompt(token_ids=types_pb2.PackedTokens(data=read.packed))
        return await super().Prefetch(store_pb2.PrefetchRequest(prompt=prompt, tenant=tenant), context)

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
