"""The worker's region of its node's arena: granted by the host store, mapped, and kept while the worker lives."""

import asyncio
import logging
import os

from pbkv_cluster.core.background import Background
from pbkv_cluster.core.errors import PbkvError, Unavailable
from pbkv_cluster.rpc.services import HOST_STORE, Services
from pbkv_cluster.rpc.v1 import store_pb2
from pbkv_cluster.store.arena.region_lock import unlock
from pbkv_cluster.store.region_lease import lease_region, map_region

log = logging.getLogger(__name__)

ATTEMPTS = 20
PAUSE_S = 0.5


class ArenaRegion:
    """A part of the node's shared memory that only this worker writes to."""

    def __init__(self, worker_id: str, host_store: Services) -> None:
        self._without = self._not_renewed = ""  # why the worker has no region, and why it may lose it
        self._worker_id = worker_id
        self._host_store = host_store
        self._lease_s = 0.0
        self._region: tuple[int, store_pb2.LeaseArenaResponse] | None = None  # with the open file that holds its lock
        self._background = Background()

    @property
    def problem(self) -> str:
        """Why the worker has no region, or why it may lose it; empty: all is well."""
        return self._without or self._not_renewed

    @property
    def file(self) -> int | None:
        """The arena's file, open until `stop`; None if the worker has no region."""
        return self._region[0] if self._region is not None else None

    async def take(self, size: int, may_be_less: bool = False) -> memoryview | None:
        """Reserves and maps `size` bytes. If it may be less: as many as there is room for, or, whatever their number, those of
        the region that an earlier process of this worker has left.

        Returns:
            None if the node's arena cannot give them; the reason is logged. None also if `size` is 0, which only makes the
            worker known to the host store.
        """
        for attempt in range(ATTEMPTS):
            try:
                region = await self._lease(size, may_be_less)
                return self._map(region) if region.bytes else None
            except Unavailable as error:  # the host store is still starting, or our last process still ending
                if attempt == ATTEMPTS - 1:
                    self._do_without(f"no region from the node's host store ({error})")
                    return None
                await asyncio.sleep(PAUSE_S)
            except PbkvError as error:
                self._do_without(f"no room in the node's arena ({error})")
                return None
        return None

    def _do_without(self, reason: str) -> None:
        self._without = f"{reason}: the host tier is this process's own memory"
        log.warning("%s", self._without)

    def keep(self) -> None:
        """Renews the region's lease from now on, also that of a region that an earlier process of this worker has left."""
        self._background.start(self._renew(), "arena")

    async def wait(self) -> None:
        """Runs until the renewal fails, then raises its error."""
        await self._background.failure()

    async def stop(self) -> None:
        await self._background.stop()
        if self._region is not None:
            file, region = self._region
            self._region = None
            unlock(file, region.offset, region.bytes)  # explicitly: the mapping keeps a duplicate of the file open
            os.close(file)

    async def _lease(self, size: int, may_be_less: bool = False) -> store_pb2.LeaseArenaResponse:
        address = await self._host_store.service_address(HOST_STORE)
        if address is None:
            raise Unavailable("the node's host store has not been announced")
        region = await lease_region(address, self._worker_id, size, may_be_less)
        self._lease_s = region.lease_s
        return region

    async def _renew(self) -> None:
        while True:
            try:
                await self._lease(0)  # whatever its size
                self._not_renewed = ""
            except PbkvError as error:
                if self._region is None:  # the host store may still be starting; `take` says what is wrong
                    log.debug("no region of the arena is kept yet: %s", error)
                    await asyncio.sleep(PAUSE_S)
                    continue
                self._not_renewed = f"the region of the arena could not be renewed: {error}"
                log.warning("%s", self._not_renewed)
            await asyncio.sleep(self._lease_s / 3 or PAUSE_S)

    def _map(self, region: store_pb2.LeaseArenaResponse) -> memoryview:
        file, memory = map_region(region, self._worker_id)
        self._region = file, region
        return memory
