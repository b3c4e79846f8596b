"""What operators ask of all caches of a cluster, through its gateway."""

from pbkv_cluster.client.failures import typed_errors
from pbkv_cluster.client.operator_connection import OperatorConnection
from pbkv_cluster.rpc.v1 import store_pb2, store_pb2_grpc


class StoreClient(OperatorConnection):
    """Calls of `StoreService`."""

    def __init__(self, endpoint: str) -> None:
        super().__init__(endpoint)
        self._stub: store_pb2_grpc.StoreServiceAsyncStub = store_pb2_grpc.StoreServiceStub(self._channel)

    async def stat(self) -> store_pb2.StoreStat:
        """What the tiers hold and what the caches have decided, over all workers."""
        with typed_errors():
            return (await self._stub.Stat(store_pb2.StatRequest())).store

    async def list_cache(
        self, *, by: str = "run", order: str = "largest", limit: int = 20, workflow: str = "", agent: str = ""
    ) -> store_pb2.ListCacheResponse:
        """What is cached.

        Args:
            by: `run`, `workflow` or `agent`.
            order: `largest` or `hottest` first.
            limit: of entries, at most 1,000.
            workflow: only what it has used; empty: all.
            agent: only what it has used; empty: all.

        Raises:
            InvalidArgument: names the field that is out of its range.
            Unavailable: the gateway or a worker is not reachable.
        """
        request = store_pb2.ListCacheRequest(
            by=f"CACHE_GROUPING_{by.upper()}",
            order=f"CACHE_ORDER_{order.upper()}",
            limit=limit,
            workflow_id=workflow,
            agent_id=agent,
        )
        with typed_errors():
            return await self._stub.ListCache(request)

    async def clear(self) -> store_pb2.ClearResponse:
        """Drops every cached block that no running step uses."""
        with typed_errors():
            return await self._stub.Clear(store_pb2.ClearRequest())

    async def check(self) -> store_pb2.CheckCacheResponse:
        """Compares the blocks in host memory with their checksums."""
        with typed_errors():
            return await self._stub.CheckCache(store_pb2.CheckCacheRequest())
