"""How a process gets a region of its node's arena: it asks the host store, maps what it gets, and locks it."""

import mmap
import os

from grpc import aio

from pbkv_cluster.core.errors import ResourceExhausted, Unavailable
from pbkv_cluster.rpc.channel import connect
from pbkv_cluster.rpc.errors import from_rpc
from pbkv_cluster.rpc.v1 import store_pb2, store_pb2_grpc
from pbkv_cluster.store.arena.region_lock import try_lock

_TIMEOUT_S = 60.0  # reserving many gigabytes takes a while


async def lease_region(address: str, owner: str, size: int, may_be_less: bool = False) -> store_pb2.LeaseArenaResponse:
    """Asks the host store at `address` for a region, or renews the lease of the one that the owner has.

    Args:
        address: host:port.
        owner: of the region; one that asks again gets the same region.
        size: bytes; 0 renews the lease whatever the region's size, or makes the owner known without a region.
        may_be_less: take as many as there is room for, or those of the region that the owner has already.

    Raises:
        PbkvError: as `Arena.acquire` does, or Unavailable if the host store does not answer.
    """
    async with connect(address) as channel:
        try:
            request = store_pb2.LeaseArenaRequest(worker_id=owner, bytes=size, may_be_less=may_be_less)
            return await store_pb2_grpc.StoreServiceStub(channel).LeaseArena(request, timeout=_TIMEOUT_S)
        except aio.AioRpcError as error:
            raise from_rpc(error) from error


def map_region(region: store_pb2.LeaseArenaResponse, owner: str) -> tuple[int, memoryview]:
    """Maps a region that has been given out, and locks it for as long as the returned file is open.

    Raises:
        Unavailable: the arena cannot be opened, or another process uses the region.
        ResourceExhausted: the machine has no room to map it.
    """
    try:
        file = os.open(region.path, os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:  # the host store has ended since
        raise Unavailable(f"the arena cannot be opened: {error.strerror}") from error
    if not try_lock(file, region.offset, region.bytes):
        os.close(file)
        raise Unavailable(f"another process still uses the region of {owner}")
    try:
        return file, memoryview(mmap.mmap(file, region.bytes, offset=region.offset))
    except OSError as error:
        os.close(file)
        raise ResourceExhausted(f"the region of {owner} cannot be mapped: {error.strerror}") from error
