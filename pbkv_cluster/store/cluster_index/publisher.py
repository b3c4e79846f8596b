"""Announces a worker and its blocks in the index for as long as the worker runs."""

import asyncio
import inspect
import logging
import random
import threading
from collections.abc import Awaitable, Callable, Mapping

from pbkv_cluster.core.background import cancel
from pbkv_cluster.core.blocks import KEY_BYTES
from pbkv_cluster.core.clock import Clock, SystemClock
from pbkv_cluster.core.errors import Unavailable
from pbkv_cluster.core.locations.residency import Residency
from pbkv_cluster.store.cluster_index.block_index import BlockIndex
from pbkv_cluster.store.cluster_index.directory import Directory
from pbkv_cluster.store.cluster_index.entries import WorkerEntry

log = logging.getLogger(__name__)

Blocks = Mapping[bytes, Residency]
Snapshot = Callable[[], Blocks | Awaitable[Blocks]]


class IndexPublisher:
    """Announces a worker, its blocks and their changes.

    The engine's thread calls `record`; everything else belongs to one event loop. Changes are published in batches, every
    `flush_interval_s` seconds. Whenever the index may lack blocks of the worker (at the start, after an outage, when Redis has
    come back empty or without the latest changes, when the buffer of changes has overflowed) the publisher takes a snapshot of
    all blocks and announces that.
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
            directory: where the worker is announced.
            index: where its blocks are announced.
            worker: the worker's entry.
            snapshot: returns all blocks that the worker holds, and where each lies; may be a coroutine function. The result
                must contain every change recorded before the call. Raising Unavailable means: try again later.
            flush_interval_s: seconds between two batches of changes.
            max_pending: limit of buffered changes; beyond it, they are dropped and a snapshot is announced.
            clock: by default the machine's.
        """
        self.outages = 0  # times that Redis was lost
        self.announcements = 0  # snapshots announced
        self.overflows = 0  # times that buffered changes were dropped in favour of a snapshot
        self._directory = directory
        self._index = index
        self._worker = worker
        self._snapshot = snapshot
        self._interval_s = flush_interval_s
        self._renew_s = directory.renewal_interval_s
        self._max_pending = max_pending
        self._clock = clock or SystemClock()
        self._lock = threading.Lock()
        self._pending: dict[bytes, int] = {}  # packed residencies
        self._stale = True  # the index may lack blocks
        self._renew_at = 0.0
        self._failures = 0  # attempts since Redis was lost
        self._task: asyncio.Task[None] | None = None

    def record(self, key: bytes, residency: Residency) -> None:
        """Buffers a change: where a block lies now. Thread-safe."""
        if len(key) != KEY_BYTES:
            raise ValueError(f"a block key has {KEY_BYTES} bytes, got {len(key)}")
        with self._lock:
            if len(self._pending) >= self._max_pending and key not in self._pending:
                self._pending.clear()
                self._stale = True
                self.overflows += 1
            self._pending[key] = residency.pack()

    async def start(self) -> None:
        """Announces the worker and all its blocks, then keeps them current. If Redis is down, they appear once it is back."""
        if self._task is not None:
            raise RuntimeError("the publisher has been started already")
        await self._attempt()
        self._task = asyncio.create_task(self._run(), name=f"index publisher of {self._worker.worker_id}")
        self._task.add_done_callback(self._ended)

    async def wait(self) -> None:
        """Runs until the publisher fails, then raises its error."""
        if self._task is None:
            raise RuntimeError("the publisher has not been started")
        await asyncio.shield(self._task)

    async def stop(self) -> None:
        """Withdraws the worker and its blocks; if Redis is down, they expire. Raises the publisher's error if it had failed."""
        task, self._task = self._task, None
        if task is None:
            return
        await cancel(task)
        try:
            await self._directory.withdraw_worker(self._worker.worker_id, self._worker.incarnation)
            await self._index.drop(self._worker.worker_id, self._worker.incarnation)
        except Unavailable as error:
            log.warning("worker %s cannot withdraw from the index and will expire there: %s", self._worker.worker_id, error)
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
        return backoff * random.uniform(0.5, 1.0)  # workers that lost Redis together should not reconnect together

    async def _attempt(self) -> None:
        try:
            await self._flush()
        except Unavailable as error:
            self._stale = True  # the last changes may or may not have arrived
            self._failures += 1
            if self._failures == 1:
                self.outages += 1
                log.warning("worker %s cannot reach the index and runs without it: %s", self._worker.worker_id, error)
        else:
            if self._failures:
                log.warning("worker %s is in the index again", self._worker.worker_id)
            self._failures = 0

    async def _flush(self) -> None:
        worker_id, incarnation = self._worker.worker_id, self._worker.incarnation
        now = self._clock.now()
        due = now >= self._renew_at
        complete = not self._stale
        if complete and self._pending:
            complete = await self._index.publish(worker_id, incarnation, self._take())
        if complete and due:
            complete = await self._index.renew(worker_id, incarnation)
        if due or not complete:
            await self._directory.announce_worker(self._worker)
            self._renew_at = now + self._renew_s
        if not complete or self._stale:  # stale: the buffer has overflowed in the meantime
            await self._announce_all()

    async def _announce_all(self) -> None:
        # The buffer is emptied before the snapshot: changes recorded while it is taken are published after it.
        self._take()
        self._stale = False
        blocks = self._snapshot()
        if inspect.isawaitable(blocks):
            blocks = await blocks
        packed = {key: residency.pack() for key, residency in blocks.items()}
        await self._index.announce(self._worker.worker_id, self._worker.incarnation, packed)
        self.announcements += 1

    def _take(self) -> dict[bytes, int]:
        with self._lock:
            taken, self._pending = self._pending, {}
        return taken

    def _ended(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("worker %s will expire in the index: its publisher failed", self._worker.worker_id, exc_info=error)
