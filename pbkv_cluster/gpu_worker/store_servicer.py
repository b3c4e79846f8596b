"""`StoreService` of a worker on the wire."""

from typing import Any

from pbkv_cluster.cache.requests import Leased
from pbkv_cluster.core import checks
from pbkv_cluster.core.blocks import Namespace, block_keys
from pbkv_cluster.core.clock import Clock
from pbkv_cluster.core.errors import FailedPrecondition, InvalidArgument
from pbkv_cluster.core.tokens import count
from pbkv_cluster.gpu_worker.cache_explaining import explain_cache
from pbkv_cluster.gpu_worker.cache_listing import check_cache, list_cache
from pbkv_cluster.gpu_worker.engine.engine_thread import EngineThread
from pbkv_cluster.gpu_worker.pool_memory import PoolMemory
from pbkv_cluster.gpu_worker.store_stat import store_stat
from pbkv_cluster.rpc.convert import packed_from_wire, tiers_to_wire
from pbkv_cluster.rpc.v1 import store_pb2, store_pb2_grpc, types_pb2


class StoreServicer(store_pb2_grpc.StoreServiceServicer):
    """Serves the worker's own tiers."""

    def __init__(self, thread: EngineThread, namespace: Namespace, memory: PoolMemory, worker_id: str, clock: Clock) -> None:
        self._thread = thread
        self._worker_id = worker_id
        self._clock = clock
        self._namespace = namespace
        self._memory = memory

    async def Stat(self, request: store_pb2.StatRequest, context: Any) -> store_pb2.StatResponse:  # noqa: N802
        return store_pb2.StatResponse(store=await self._thread.call(lambda engine: store_stat(engine, self._memory)))

    async def Prefetch(  # noqa: N802
        self, request: store_pb2.PrefetchRequest, context: Any
    ) -> store_pb2.PrefetchResponse:
        within_s = checks.seconds("within_s", request.within_s)
        leased, lease_id = 0, ""
        if request.HasField("prompt"):
            namespace, tokens = self._prompt(request.prompt, request.tenant)
            done = await self._thread.call(lambda engine: engine.cache.requests.prefetch(namespace, tokens))
            if within_s:
                # One lease for each prompt: a client that asks for it again has the lease begin anew, and no second one.
                lease_id = f"prefetch-{b''.join(block_keys(namespace, tokens)[-1:]).hex()}"
                leased = (await self._lease(namespace, tokens, lease_id, within_s, request.workflow_id)).leased
        else:
            workflow, agent = request.workflow_id, request.agent_id
            done = await self._thread.call(lambda engine: engine.cache.requests.prefetch_workflow(workflow, agent))
        return store_pb2.PrefetchResponse(
            loaded_tokens=done.loaded,
            resident_tokens=done.resident,
            tokens=done.tokens,
            tiers=tiers_to_wire(done.tiers),
            leased_tokens=leased,
            lease_id=lease_id if leased else "",
            staged_tokens=done.staged,
        )

    async def LeaseBlocks(  # noqa: N802
        self, request: store_pb2.LeaseBlocksRequest, context: Any
    ) -> store_pb2.LeaseBlocksResponse:
        lease_id = checks.required_name("lease_id", request.lease_id)
        lease_s = checks.seconds("lease_s", request.lease_s)
        namespace, tokens = self._prompt(request.prompt, request.tenant)
        done = await self._lease(namespace, tokens, lease_id, lease_s, request.workflow_id)
        return store_pb2.LeaseBlocksResponse(cached_tokens=done.cached, leased_tokens=done.leased)

    async def ReleaseBlocks(  # noqa: N802
        self, request: store_pb2.ReleaseBlocksRequest, context: Any
    ) -> store_pb2.ReleaseBlocksResponse:
        tenant, lease_id = request.tenant, checks.required_name("lease_id", request.lease_id)
        released = await self._thread.call(lambda engine: engine.cache.requests.release(tenant, lease_id))
        return store_pb2.ReleaseBlocksResponse(released_tokens=released)

    def _prompt(self, prompt: types_pb2.Prompt, tenant: str) -> tuple[Namespace, bytes]:
        """The namespace and the packed tokens of a prompt.

        Raises:
            InvalidArgument: it has another form.
        """
        if prompt.WhichOneof("form") != "token_ids":
            raise InvalidArgument("prompt", "a worker takes token_ids only; ask the gateway")
        tokens = packed_from_wire(prompt.token_ids, "prompt.token_ids")
        return self._namespace.of_tenant(tenant, count(tokens)), tokens

    async def _lease(self, namespace: Namespace, tokens: bytes, lease_id: str, seconds: float, workflow: str) -> Leased:
        return await self._thread.call(
            lambda engine: engine.cache.requests.lease(namespace, tokens, lease_id, seconds, workflow)
        )

    async def LeaseArena(  # noqa: N802
        self, request: store_pb2.LeaseArenaRequest, context: Any
    ) -> store_pb2.LeaseArenaResponse:
        raise FailedPrecondition("a worker has no arena; ask the node's host store")

    async def Clear(self, request: store_pb2.ClearRequest, context: Any) -> store_pb2.ClearResponse:  # noqa: N802
        return store_pb2.ClearResponse(dropped_blocks=await self._thread.call(lambda engine: engine.cache.clear()))

    async def ListCache(  # noqa: N802
        self, request: store_pb2.ListCacheRequest, context: Any
    ) -> store_pb2.ListCacheResponse:
        return await list_cache(self._thread, request, self._worker_id, self._clock.now())

    async def CheckCache(  # noqa: N802
        self, request: store_pb2.CheckCacheRequest, context: Any
    ) -> store_pb2.CheckCacheResponse:
        return await check_cache(self._thread, self._memory)

    async def ExplainCache(  # noqa: N802
        self, request: store_pb2.ExplainCacheRequest, context: Any
    ) -> store_pb2.ExplainCacheResponse:
        return await explain_cache(self._thread, request, self._worker_id, self._clock)
