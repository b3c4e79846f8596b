"""The worker's part of its node's host arena: leased from the host store, mapped, and kept while the worker lives."""

import asyncio
import logging
import mmap
import os

from grpc import aio

from pbkv_cluster.core.background import Background
from pbkv_cluster.core.errors import PbkvError, Unavailable
from pbkv_cluster.rpc.channel import connect
from pbkv_cluster.rpc.errors import from_rpc
from pbkv_cluster.rpc.services import HOST_STORE, Services
from pbkv_cluster.rpc.v1 import store_pb2, store_pb2_grpc
from pbkv_cluster.store.arena.region_lock import try_lock, unlock

log = logging.getLogger(__name__)

_ATTEMPTS = 20
_PAUSE_S = 0.5
_TIMEOUT_S = 60.0  # to reserve many gigabytes takes a while


class ArenaLease:
    """A region of the node's shared memory that nobody else writes to while the lease is kept."""

    def __init__(self, worker_id: str, host_store: Services) -> None:
        self._worker_id = worker_id
        self._host_store = host_store
        self._request = store_pb2.LeaseArenaRequest()
        self._lease_s = 0.0
        self._region: tuple[int, store_pb2.LeaseArenaResponse] | None = None  # the open file that has it locked
        self._background = Background()

    async def take(self, size: int) -> memoryview | None:
        """Leases and maps `size` bytes. None when the node's arena cannot give them, and the reason is logged; or when `size`
        is 0, which makes the worker known to the host store all the same.
        """
        self._request = store_pb2.LeaseArenaRequest(worker_id=self._worker_id, bytes=size)
        for attempt in range(_ATTEMPTS):
            try:
                region = await self._lease()
                return self._map(region) if size else None
            except Unavailable as error:  # the host store starts beside this worker, or our last process is still ending
                if attempt == _ATTEMPTS - 1:
                    log.warning("no host store (%s): the host tier is this process's own memory", error)
                    return None
                await asyncio.sleep(_PAUSE_S)
            except PbkvError as error:
                log.warning("no room in the node's arena (%s): the host tier is this process's own memory", error)
                return None
        return None

    def keep(self, address: str) -> None:
        """Renews the lease from now on, telling the host store where this worker is."""
        # No size: whatever there is is renewed, and a host store that has been replaced does not reserve it again.
        self._request = store_pb2.LeaseArenaRequest(worker_id=self._worker_id, worker_address=address)
        self._background.start(self._renew(), "arena")

    async def wait(self) -> None:
        """Returns never while all is well; raises what ended it."""
        await self._background.failure()

    async def stop(self) -> None:
        await self._background.stop()
        if self._region is not None:
            file, region = self._region
            self._region = None
            unlock(file, region.offset, region.bytes)  # said, since the mapping keeps a copy of the file open
            os.close(file)

    async def _lease(self) -> store_pb2.LeaseArenaResponse:
        address = await self._host_store.service_address(HOST_STORE)
        if address is None:
            raise Unavailable("the node's host store has not been announced")
        async with connect(address) as channel:
            try:
                region = await store_pb2_grpc.StoreServiceStub(channel).LeaseArena(self._request, timeout=_TIMEOUT_S)
            except aio.AioRpcError as error:
                raise from_rpc(error) from error
        self._lease_s = region.lease_s
        return region

    async def _renew(self) -> None:
        while True:
            try:
                await self._lease()
            except PbkvError as error:
                log.warning("the lease on the arena could not be renewed: %s", error)
            await asyncio.sleep(self._lease_s / 3 or _PAUSE_S)

    def _map(self, region: store_pb2.LeaseArenaResponse) -> memoryview:
        file = os.open(region.path, os.O_RDWR)
        if not try_lock(file, region.offset, region.bytes):
            os.close(file)
            raise Unavailable(f"another process still uses the region of {self._worker_id}")
        self._region = file, region
        return memoryview(mmap.mmap(file, region.bytes, offset=region.offset))
