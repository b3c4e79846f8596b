"""The host store of one node: an arena, the gRPC server that gives regions of it to workers, and the server of its blocks."""

import asyncio

from pbkv_cluster.rpc.server import RpcServer
from pbkv_cluster.rpc.v1 import store_pb2, store_pb2_grpc
from pbkv_cluster.store.arena.arena import Arena
from pbkv_cluster.store.figures import HostStoreFigures
from pbkv_cluster.store.peers.transport import BlockServer
from pbkv_cluster.store.servicer import HostStoreServicer, WorkerAddresses


class HostStore:
    """The host store of one node as a plain object. It owns its arena."""

    def __init__(
        self, arena: Arena, workers: WorkerAddresses, peers: BlockServer | None = None, worker_timeout_s: float = 10.0
    ) -> None:
        """Args:
        arena: removed by `stop`.
        workers: finds the node's workers.
        peers: serves the arena's blocks to other nodes; None: they are not served.
        worker_timeout_s: seconds that a worker may take to answer a call that is passed on to it.
        """
        self._arena = arena
        self.figures = HostStoreFigures(arena, peers)
        self._peers = peers
        self.peer_address = ""  # of the server of blocks, once it is started
        servicer = HostStoreServicer(arena, workers, worker_timeout_s)
        self.regions = servicer.regions
        self._server = RpcServer()
        self._server.add(
            store_pb2.DESCRIPTOR.services_by_name["StoreService"],
            store_pb2_grpc.add_StoreServiceServicer_to_server,
            servicer,
        )

    async def start(self, host: str, port: int = 0, peer_port: int = 0) -> str:
        """Binds and serves. Returns the address of the gRPC server, host:port.

        Raises:
            StartupError: an address cannot be bound.
        """
        if self._peers is not None:
            self.peer_address = self._peers.start(host, peer_port)
        return await self._server.start(host, port)

    async def stop(self) -> None:
        """Ends the servers and removes the arena."""
        if self._peers is not None:
            await asyncio.to_thread(self._peers.stop)
        await self._server.stop()
        self._arena.close()
