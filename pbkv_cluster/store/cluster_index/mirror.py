"""A copy of the cluster index in this process, fed by the change stream, so that nobody who asks often has to ask Redis.

The number of each change tells whether one was missed. Then, and when a worker is new, has restarted or has announced all its
blocks again (as it does when Redis has come back empty or without its latest changes), its blocks are read from the index.
Every worker is renewed several times in its time to live, with the number of its latest change: so a change that was lost is
noticed even if none follows, and a worker that is not renewed any more is forgotten.
"""

import asyncio
import logging
from collections.abc import Sequence

from pbkv_cluster.core.background import Background
from pbkv_cluster.core.clock import Clock
from pbkv_cluster.core.errors import Unavailable
from pbkv_cluster.store.block_map import BlockMap, Match, WorkerKey
from pbkv_cluster.store.cluster_index.block_index import BlockIndex
from pbkv_cluster.store.cluster_index.change_stream import Change, ChangeStream
from pbkv_cluster.store.cluster_index.directory import Directory

log = logging.getLogger(__name__)

_WAIT_S = 0.4  # for an entry; less than the time-out of the client
_GATHER_S = 0.01  # in which further entries are awaited, so that a busy cluster does not wake the process for each
_RETRY_S = 0.5
_LATE = 2  # times to live without a sign of life, after which a worker is forgotten


class IndexMirror:
    """Keeps a `BlockMap` as the index is, for as long as Redis answers. Belongs to one event loop."""

    def __init__(
        self, index: BlockIndex, directory: Directory, clock: Clock, blocks: BlockMap | None = None, besides: str = ""
    ) -> None:
        """Args:
        index: that is mirrored.
        directory: of the same cluster; tells on which node a worker is.
        clock: for times to live.
        blocks: the copy; by default one of all blocks.
        besides: id of a worker whose blocks are left out.
        """
        self.blocks = BlockMap() if blocks is None else blocks
        self.repairs = 0  # times that a worker's blocks were read again because a change was missed
        self.is_current = False  # false before the first copy is complete, and while Redis does not answer
        self._besides = besides
        self._index = index
        self._directory = directory
        self._clock = clock
        self.stream = ChangeStream(index.redis, index.cluster)
        self._numbers: dict[WorkerKey, int] = {}  # of the latest change that the copy contains
        self._heard_at: dict[WorkerKey, float] = {}
        self._quiet_since = 0.0  # the stream has had no entry since
        self._is_warm = False  # a first copy has been made
        self._background = Background()

    def start(self) -> None:
        """Copies the index and follows it, on a task of the running event loop."""
        self._background.start(self.run(), "index mirror")

    async def wait(self) -> None:
        """Runs until the mirror fails, then raises its error."""
        await self._background.failure()

    async def stop(self) -> None:
        await self._background.stop()

    @property
    def has_lost_redis(self) -> bool:
        """Whether there is a copy, but one that may be out of date because Redis does not answer."""
        return self._is_warm and not self.is_current

    async def match(self, keys: Sequence[bytes], workers: Sequence[WorkerKey]) -> list[Match]:
        """How much of a sequence of blocks each worker holds: from the copy, or from Redis before there is one.

        Raises:
            Unavailable: Redis does not answer, or has not when the mirror asked it last.
        """
        if self.is_current:
            return self.blocks.match(keys, workers)
        if self.has_lost_redis:
            raise Unavailable("the mirror of the index waits for Redis")
        return await self._index.match(keys, workers)

    async def run(self) -> None:
        """Follows the index for ever."""
        while True:
            try:
                await self._resume()
                while True:
                    await self._follow()
            except Unavailable as error:
                if self.is_current:
                    log.warning("the mirror of the index waits for Redis: %s", error)
                self.is_current = False
                await asyncio.sleep(_RETRY_S)

    async def _resume(self) -> None:
        """Copies the index; or goes on where the stream was lost, if it is still the same one."""
        if self._is_warm:
            await self.stream.rewind_if_restarted()
        else:
            await self.stream.skip()  # first: what changes while the blocks are read comes after this
            for entry in await self._directory.workers():
                if entry.worker_id != self._besides:
                    await self._copy((entry.worker_id, entry.incarnation))
        self._heard_at = dict.fromkeys(self._numbers, self._clock.now())
        self._quiet_since = self._clock.now()
        self._is_warm = self.is_current = True

    async def _follow(self) -> None:
        changes = await self.stream.read(_WAIT_S)
        now = self._clock.now()
        for change in changes:
            await self._take(change)
        for worker in [each for each, heard_at in self._heard_at.items() if now - heard_at > _LATE * self._index.ttl_s]:
            self._forget(worker)
        if changes:
            self._quiet_since = now
            await asyncio.sleep(_GATHER_S)
        elif self._numbers and now - self._quiet_since > self._index.ttl_s:
            self._quiet_since = now
            await self.stream.rewind_if_restarted()

    async def _take(self, change: Change) -> None:
        worker = change.worker
        if worker[0] == self._besides:
            return
        if change.dropped:
            self._forget(worker)
            return
        known = self._numbers.get(worker)
        if known is None:
            await self._copy(worker)
        elif change.packed and change.number == known + 1:
            self.blocks.change(worker, change.blocks())
            self._numbers[worker] = change.number
        elif change.number > known:
            self.repairs += not change.replaced
            await self._copy(worker)
        # What is older than the copy is part of it: numbers of a worker never go back.
        if worker in self._numbers:
            self._heard_at[worker] = self._clock.now()

    async def _copy(self, worker: WorkerKey) -> None:
        """Reads a worker's blocks from the index. What changes meanwhile is in the stream, with a higher number."""
        number = await self._index.number(worker)
        entry = await self._directory.worker(worker[0])
        if number is None or entry is None or entry.incarnation != worker[1]:
            self._forget(worker)  # it has gone, or another process has taken its place
            return
        blocks: dict[bytes, int] = {}
        async for page in self._index.pages(worker):
            blocks.update(page)
        if await self._index.number(worker) is None:  # it has gone meanwhile
            self._forget(worker)
            return
        self.blocks.replace(worker, entry.node_id, blocks.items())
        for other in [each for each in self._numbers if each[0] == worker[0]]:
            self._forget_number(other)
        self._numbers[worker] = number
        self._heard_at[worker] = self._clock.now()

    def _forget(self, worker: WorkerKey) -> None:
        self.blocks.remove(worker)
        self._forget_number(worker)

    def _forget_number(self, worker: WorkerKey) -> None:
        self._numbers.pop(worker, None)
        self._heard_at.pop(worker, None)
