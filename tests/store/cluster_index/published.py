"""A worker whose blocks are published, and a mirror that follows them: do they agree?"""

import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from redis.asyncio import Redis

from pbkv_cluster.core.blocks import block_keys
from pbkv_cluster.core.clock import ManualClock, SystemClock
from pbkv_cluster.core.errors import Unavailable
from pbkv_cluster.core.locations.residency import Residency
from pbkv_cluster.core.tokens import BLOCK_BYTES
from pbkv_cluster.core.usage import Tier
from pbkv_cluster.store.cluster_index import BlockIndex, Directory, IndexMirror, IndexPublisher
from tests.polling import eventually
from tests.store.cluster_index.helpers import NAMESPACE, worker_entry

GPU = Residency(frozenset({Tier.GPU}))
KEYS = block_keys(NAMESPACE, random.Random(5).randbytes(30 * BLOCK_BYTES))
WORKER = worker_entry()
HOLDER = (WORKER.worker_id, WORKER.incarnation)
TTL_S = 600.0  # no renewal is due in a test, unless its clock is moved


class PublishedWorker:
    """What the worker holds, its publisher, and a mirror."""

    def __init__(self, redis: Redis) -> None:
        self.index = BlockIndex(redis, "test", TTL_S)
        directory = Directory(redis, "test", TTL_S)
        self.blocks = dict.fromkeys(KEYS[:10], GPU)
        self.clock = ManualClock()
        self.publisher = IndexPublisher(
            directory, self.index, WORKER, lambda: dict(self.blocks), flush_interval_s=0.01, clock=self.clock
        )
        self.mirror = IndexMirror(self.index, directory, SystemClock())

    def hold(self, keys: list[bytes]) -> None:
        for key in keys:
            self.blocks[key] = GPU
            self.publisher.record(key, GPU)

    async def is_known(self) -> bool:
        """Whether Redis and the mirror say what the worker holds."""
        packed = {key: residency.pack() for key, residency in self.blocks.items()}
        try:
            in_redis = await blocks_in(self.index)
        except Unavailable:
            return False
        return self.mirror.is_current and self.mirror.blocks.blocks(HOLDER) == in_redis == packed

    @asynccontextmanager
    async def published(self) -> AsyncIterator[None]:
        await self.publisher.start()
        self.mirror.start()
        try:
            await eventually(self.is_known)
            yield
        finally:
            await self.mirror.stop()
            await self.publisher.stop()


async def blocks_in(index: BlockIndex) -> dict[bytes, int]:
    return {key: packed async for page in index.pages(HOLDER) for key, packed in page.items()}
