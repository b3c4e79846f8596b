"""The host store on the wire: regions of the arena for workers, and calls passed on to all workers of the node."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

from pbkv_cluster.core import checks
from pbkv_cluster.rpc.v1 import store_pb2
from pbkv_cluster.store.arena.arena import Arena, Region
from pbkv_cluster.store.fan_out import WorkersServicer

# The addresses of this node's workers by id, as the cluster's directory has them; raises Unavailable.
WorkerAddresses = Callable[[], Awaitable[Mapping[str, str]]]


class HostStoreServicer(WorkersServicer):
    """Answers for all caches of one node together.

    A worker's address is the one in the directory, which only members can write to: whoever asks for a region could otherwise
    have calls sent wherever they like.
    """

    def __init__(self, arena: Arena, workers: WorkerAddresses, worker_timeout_s: float) -> None:
        super().__init__(worker_timeout_s)
        self._arena = arena
        self._workers = workers
        self._arena_in_use = asyncio.Lock()

    async def LeaseArena(  # noqa: N802
        self, request: store_pb2.LeaseArenaRequest, context: Any
    ) -> store_pb2.LeaseArenaResponse:
        worker_id = checks.required_name("worker_id", request.worker_id)
        async with self._arena_in_use:  # in a thread: reserving many gigabytes takes a while
            region = await asyncio.to_thread(self._arena.acquire, worker_id, request.bytes, request.may_be_less)
        return store_pb2.LeaseArenaResponse(
            path=str(self._arena.path), offset=region.offset, bytes=region.size, lease_s=self._arena.ttl_s
        )

    async def worker_addresses(self) -> Sequence[str]:
        """Of every worker that has a region and is in the directory."""
        regions = await self.regions()
        return [address for worker_id, address in (await self._workers()).items() if worker_id in regions]

    async def regions(self) -> Mapping[str, Region]:
        """The arena's regions that have not expired, by owner."""
        async with self._arena_in_use:
            return await asyncio.to_thread(self._arena.regions)
