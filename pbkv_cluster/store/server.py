"""The host store of one node: an arena, and the gRPC server that gives regions of it to workers."""

from pbkv_cluster.rpc.server import RpcServer
from pbkv_cluster.rpc.v1 import store_pb2, store_pb2_grpc
from pbkv_cluster.store.arena.arena import Arena
from pbkv_cluster.store.figures import HostStoreFigures
from pbkv_cluster.store.servicer import HostStoreServicer, WorkerAddresses


class HostStore:
    """The host store of one node as a plain object. It owns its arena."""

    def __init__(self, arena: Arena, workers: WorkerAddresses, worker_timeout_s: float = 10.0) -> None:
        """Args:
        arena: removed by `stop`.
        workers: finds the node's workers.
        worker_timeout_s: seconds that a worker may take to answer a call that is passed on to it.
        """
        self._arena = arena
        self.figures = HostStoreFigures(arena)
        self._server = RpcServer()
        self._server.add(
            store_pb2.DESCRIPTOR.services_by_name["StoreService"],
            store_pb2_grpc.add_StoreServiceServicer_to_server,
            HostStoreServicer(arena, workers, worker_timeout_s),
        )

    async def start(self, host: str, port: int = 0) -> str:
        """Binds and serves. Returns the address, host:port.

        Raises:
            StartupError: the address cannot be bound.
        """
        return await self._server.start(host, port)

    async def stop(self) -> None:
        """Ends the server and removes the arena."""
        await self._server.stop()
        self._arena.close()
