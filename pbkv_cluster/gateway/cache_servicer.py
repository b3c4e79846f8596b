"""`StoreService` of the gateway: what operators ask of all caches of the cluster together."""

from collections.abc import Sequence
from typing import Any

from pbkv_cluster.core.errors import FailedPrecondition, Unavailable
from pbkv_cluster.gateway.routing.worker_pool import WorkerPool
from pbkv_cluster.rpc.v1 import store_pb2
from pbkv_cluster.store.fan_out import WorkersServicer

_WORKER_TIMEOUT_S = 30.0


class CacheServicer(WorkersServicer):
    """Passes calls on to every worker that the gateway knows."""

    def __init__(self, pool: WorkerPool) -> None:
        super().__init__(_WORKER_TIMEOUT_S)
        self._pool = pool

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
