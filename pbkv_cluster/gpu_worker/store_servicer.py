"""`StoreService` of a worker on the wire."""

from typing import Any

from pbkv_cluster.core.blocks import Namespace
from pbkv_cluster.core.clock import Clock
from pbkv_cluster.core.errors import FailedPrecondition, InvalidArgument
from pbkv_cluster.core.tokens import count
from pbkv_cluster.gpu_worker.cache_explaining import explain_cache
from pbkv_cluster.gpu_worker.cache_listing import check_cache, list_cache
from pbkv_cluster.gpu_worker.engine.engine_thread import EngineThread
from pbkv_cluster.gpu_worker.pool_memory import PoolMemory
from pbkv_cluster.gpu_worker.store_stat import store_stat
from pbkv_cluster.rpc.convert import packed_from_wire
from pbkv_cluster.rpc.v1 import store_pb2, store_pb2_grpc


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
        if request.workflow_id:
            done = await self._thread.call(lambda engine: engine.cache.prefetch_workflow(request.workflow_id))
        else:
            if request.prompt.WhichOneof("form") != "token_ids":
                raise InvalidArgument("prompt", "a worker takes token_ids only, or a workflow_id; ask the gateway")
            tokens = packed_from_wire(request.prompt.token_ids, "prompt.token_ids")
            namespace = self._namespace.of_tenant(request.tenant, count(tokens))
            done = await self._thread.call(lambda engine: engine.cache.prefetch(namespace, tokens))
        return store_pb2.PrefetchResponse(loaded_tokens=done.loaded, resident_tokens=done.resident)

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
        return await check_cache(self._thread, self._memory.host)

    async def ExplainCache(  # noqa: N802
        self, request: store_pb2.ExplainCacheRequest, context: Any
    ) -> store_pb2.ExplainCacheResponse:
        return await explain_cache(self._thread, request, self._worker_id, self._clock)
