"""What a worker's cache holds, for a comparison with the cluster index."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from itertools import islice

from pbkv_cluster.core.blocks import KEY_BYTES
from pbkv_cluster.core.errors import InvalidArgument
from pbkv_cluster.core.locations.residency import Residency, is_readable, unpack
from pbkv_cluster.core.usage import Tier
from pbkv_cluster.gpu_worker.engine.engine import Engine
from pbkv_cluster.gpu_worker.engine.engine_thread import EngineThread
from pbkv_cluster.gpu_worker.kv.host_region import HostRegion
from pbkv_cluster.rpc.v1 import worker_pb2

_NODES = 500  # of a page: about a millisecond of the engine's thread


async def block_pages(thread: EngineThread) -> AsyncIterator[worker_pb2.BlockPage]:
    """Every cached block and where it lies. What changes meanwhile may be missed, or be told as it was.

    Raises:
        Unavailable: the engine has ended.
    """
    nodes = await thread.call(lambda engine: engine.cache.tree.walk())

    def portion(engine: Engine) -> tuple[int, list[bytes], list[Residency]]:
        seen = list(islice(nodes, _NODES))
        keys, residencies = list[bytes](), list[Residency]()
        for node in seen:
            if any(node.held):  # otherwise it has left the cache since the walk came upon it
                keys += map(node.key, range(node.blocks))
                residencies += engine.cache.tiers.residencies(node)
        return len(seen), keys, residencies

    while True:
        seen, keys, residencies = await thread.call(portion)
        if keys:
            yield worker_pb2.BlockPage(keys=b"".join(keys), residencies=[each.pack() for each in residencies])
        if seen < _NODES:
            return


async def find_unbacked(host: HostRegion | None, page: worker_pb2.BlockPage) -> worker_pb2.BlockPage:
    """Those of some blocks that do not lie in the slots of host memory in which they are said to lie.

    Raises:
        InvalidArgument: keys and residencies are not as many.
    """
    if len(page.keys) != KEY_BYTES * len(page.residencies):
        raise InvalidArgument("keys", f"must be {KEY_BYTES} bytes for each of {len(page.residencies)} residencies")
    keys = [page.keys[at : at + KEY_BYTES] for at in range(0, len(page.keys), KEY_BYTES)]
    unbacked = await asyncio.to_thread(_unbacked, host, list(zip(keys, page.residencies, strict=True)))
    return worker_pb2.BlockPage(keys=b"".join(key for key, _ in unbacked), residencies=[packed for _, packed in unbacked])


def _unbacked(host: HostRegion | None, blocks: Sequence[tuple[bytes, int]]) -> list[tuple[bytes, int]]:
    found = []
    for key, packed in blocks:
        residency = unpack(packed)
        in_host = Tier.HOST in residency.tiers and is_readable(packed)
        if in_host and not (host is not None and host.slots.holds(residency.slot, key)):
            found.append((key, packed))
    return found
