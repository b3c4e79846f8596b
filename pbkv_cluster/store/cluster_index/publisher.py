"""Keeps a worker and its blocks in the index for as long as the worker runs."""

import asyncio
import inspect
import logging
import random
import threading
from collections.abc import Awaitable, Callable, Mapping, Set

from pbkv_cluster.core.background import cancel
from pbkv_cluster.core.blocks import KEY_BYTES
from pbkv_cluster.core.clock import Clock, SystemClock
from pbkv_cluster.core.errors import Unavailable
from pbkv_cluster.core.usage import Tier
from pbkv_cluster.store.cluster_index.block_index import BlockIndex
from pbkv_cluster.store.cluster_index.directory import Directory
from pbkv_cluster.store.cluster_index.entries import WorkerEntry

log = logging.getLogger(__name__)

Blocks = Mapping[bytes, Set[Tier]]
Snapshot = Callable[[], Blocks | Awaitable[Blocks]]

_RENEWALS_PER_LEASE = 3


class IndexPublisher:
    """Announces a worker, its blocks, and what changes about them.

    The engine's thread calls `record`; everything else belongs to one event loop. Changes are announced together, every
    `flush_interval_s`. Whenever the index may not know all the worker's blocks (at the start, after an outage, after Redis came
    back empty, after more changes than fit the buffer) it asks `snapshot` for all of them and announces these instead.
    """

    def __init__(
        self,
        directory: Directory,
        index: BlockIndex,
        worker: WorkerEntry,
        snapshot: Snapshot,
        *,
        flush_interval_s: float,
        max_pending: int = 100_000,
        clock: Clock | None = None,
    ) -> None:
        """
        Args:
            directory: where the worker is announced; its lease is renewed three times over.
            index: where the blocks are announced.
            worker: what to announce.
            snapshot: all blocks that the worker holds, each with its tiers; it or what it returns may be awaited. It must show
                every change that was recorded before it was called. Raising Unavailable means: try again later.
            flush_interval_s: seconds between two announcements of changes.
            max_pending: changed blocks kept at most; when there are more, they are dropped for a snapshot.
            clock: the machine's by default.
        """
        self.outages = 0  # times that Redis went away
        self.announcements = 0  # of all blocks
        self.overflows = 0  # times that changes were dropped for a snapshot
        self._directory = directory
        self._index = index
        self._worker = worker
        self._snapshot = snapshot
        self._interval_s = flush_interval_s
        self._renew_s = directory.lease_s / _RENEWALS_PER_LEASE
        self._max_pending = max_pending
        self._clock = clock or SystemClock()
        self._lock = threading.Lock()
        self._pending: dict[bytes, Set[Tier]] = {}
        self._stale = True  # the index may not know all blocks
        self._renew_at = 0.0
        self._failures = 0  # attempts since Redis went away
        self._task: asyncio.Task[None] | None = None

    def record(self, key: bytes, tiers: Set[Tier]) -> None:
        """Notes the tiers that hold a block now; none if it is gone. From any thread; the set must not change afterwards."""
        if len(key) != KEY_BYTES:
            raise ValueError(f"a block key has {KEY_BYTES} bytes, got {len(key)}")
        with self._lock:
            if len(self._pending) >= self._max_pending and key not in self._pending:
                self._pending.clear()
                self._stale = True
                self.overflows += 1
            self._pending[key] = tiers

    async def start(self) -> None:
        """Announces the worker and all its blocks, and keeps doing so. If Redis is away, the worker appears once it is back."""
        if self._task is not None:
            raise RuntimeError("the publisher has been started already")
        await self._attempt()
        self._task = asyncio.create_task(self._run(), name=f"index publisher of {self._worker.worker_id}")
        self._task.add_done_callback(self._ended)

    async def wait(self) -> None:
        """Returns never while all is well; raises what ended the publisher."""
        if self._task is None:
            raise RuntimeError("the publisher has not been started")
        await asyncio.shield(self._task)

    async def stop(self) -> None:
        """Withdraws the worker and its blocks; if Redis is away, their lease does. Raises what ended the publisher before."""
        task, self._task = self._task, None
        if task is None:
            return
        await cancel(task)
        try:
            await self._directory.withdraw_worker(self._worker.worker_id, self._worker.incarnation)
            await self._index.drop(self._worker.worker_id, self._worker.incarnation)
        except Unavailable as error:
            log.warning("worker %s leaves the index by its lease: %s", self._worker.worker_id, error)
        if not task.cancelled():
            task.result()

    async def _run(self) -> None:
        while True:
            await asyncio.sleep(self._delay_s())
            await self._attempt()

    def _delay_s(self) -> float:
        if not self._failures:
            return self._interval_s
        backoff = min(self._interval_s * 2.0 ** min(self._failures, 16), max(self._renew_s, self._interval_s))
        return backoff * random.uniform(0.5, 1.0)  # workers that lost Redis together should not come back together

    async def _attempt(self) -> None:
        try:
            await self._flush()
        except Unavailable as error:
            self._stale = True  # what of the last changes has arrived is unknown
            self._failures += 1
            if self._failures == 1:
                self.outages += 1
                log.warning("worker %s cannot reach the index and goes on without: %s", self._worker.worker_id, error)
        else:
            if self._failures:
                log.warning("worker %s is in the index again", self._worker.worker_id)
            self._failures = 0

    async def _flush(self) -> None:
        worker_id, incarnation = self._worker.worker_id, self._worker.incarnation
        now = self._clock.now()
        due = now >= self._renew_at
        whole = not self._stale
        if whole and self._pending:
            whole = await self._index.publish(worker_id, incarnation, self._take())
        if whole and due:
            whole = await self._index.renew(worker_id, incarnation)
        if due or not whole:
            await self._directory.announce_worker(self._worker)
            self._renew_at = now + self._renew_s
        if not whole or self._stale:  # stale by now: more changes came meanwhile than fit
            await self._announce()

    async def _announce(self) -> None:
        # Before the snapshot, not after: what is recorded while it is taken goes out again behind it.
        self._take()
        self._stale = False
        blocks = self._snapshot()
        if inspect.isawaitable(blocks):
            blocks = await blocks
        await self._index.announce(self._worker.worker_id, self._worker.incarnation, blocks)
        self.announcements += 1

    def _take(self) -> dict[bytes, Set[Tier]]:
        with self._lock:
            taken, self._pending = self._pending, {}
        return taken

    def _ended(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("worker %s leaves the index: its publisher failed", self._worker.worker_id, exc_info=error)
