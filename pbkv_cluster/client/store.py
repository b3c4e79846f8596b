"""What operators ask of all caches of a cluster, through its gateway."""

from collections.abc import Sequence

from pbkv_cluster.client.operator_connection import OperatorConnection, typed_errors
from pbkv_cluster.rpc.v1 import store_pb2, store_pb2_grpc


class StoreClient(OperatorConnection):
    """Calls of `StoreService`."""

    def __init__(self, endpoint: str | Sequence[str] = "") -> None:
        super().__init__(endpoint)
        self._stub: store_pb2_grpc.StoreServiceAsyncStub = store_pb2_grpc.StoreServiceStub(self._channel)

    async def stat(self) -> store_pb2.StoreStat:
        """What the tiers hold and what the caches have decided, over all workers."""
        with typed_errors():
            return (await self._stub.Stat(store_pb2.StatRequest())).store

    async def list_cache(
        self,
        *,
        by: str = "run",
        order: str = "largest",
        limit: int = 20,
        workflow: str = "",
        agent: str = "",
        last_decisions: bool = False,
    ) -> store_pb2.ListCacheResponse:
        """What is cached.

        Args:
            by: `run`, `workflow` or `agent`.
            order: `largest` or `hottest` first.
            limit: of entries, at most 1,000.
            workflow: only what it has used; empty: all.
            agent: only what it has used; empty: all.
            last_decisions: tell the last decision about each run.

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
            last_decisions=last_decisions,
        )
        with typed_errors():
            return await self._stub.ListCache(request)

    async def clear(self) -> store_pb2.ClearResponse:
        """Drops every cached block that no running step uses."""
        with typed_errors():
            return await self._stub.Clear(store_pb2.ClearRequest())

    async def check(self) -> store_pb2.CheckCacheResponse:
        """Compares the blocks in host memory and on disk with their checksums."""
        with typed_errors():
            return await self._stub.CheckCache(store_pb2.CheckCacheRequest())

    async def explain_block(self, key: str, limit: int = 20) -> store_pb2.ExplainCacheResponse:
        """Where a block lies, what it is worth, and the last decisions about it.

        Args:
            key: block key in hex, or its beginning.
            limit: of decisions, at most 1,000.

        Raises:
            InvalidArgument: it is no block key, or the limit is out of its range.
            Unavailable: the gateway or a worker is not reachable.
        """
        with typed_errors():
            return await self._stub.ExplainCache(store_pb2.ExplainCacheRequest(block=key, limit=limit))

    async def decisions_about(self, workflow: str, limit: int = 20) -> Sequence[store_pb2.CacheDecision]:
        """The last decisions about the blocks of a workflow, the latest first; arguments and errors as for `explain_block`."""
        with typed_errors():
            request = store_pb2.ExplainCacheRequest(workflow_id=workflow, limit=limit)
            return (await self._stub.ExplainCache(request)).decisions
