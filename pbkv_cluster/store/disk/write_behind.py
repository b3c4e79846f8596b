"""Writes blocks to the disk on a thread of its own, from a bounded buffer: who stores a block waits for a copy in memory."""

import logging
import threading
from collections import deque
from time import perf_counter

import numpy as np

from pbkv_cluster.core.ewma import Ewma
from pbkv_cluster.store.arena.layout import SlotHeader
from pbkv_cluster.store.arena.slots import Bytes, ReadResult
from pbkv_cluster.store.disk.disk_slots import DiskSlots

log = logging.getLogger(__name__)

BUFFER_BYTES = 64 << 20
_WEIGHT = 0.2  # of the latest measurement


class _Waiting:
    """A block in the buffer."""

    __slots__ = ("header", "payload", "slot")

    def __init__(self, slot: int, header: SlotHeader, payload: Bytes) -> None:
        self.slot = slot
        self.header = header
        self.payload = payload


class WriteBehind:
    """The slots of a disk, for one thread that stores and one that loads."""

    def __init__(self, disk: DiskSlots, buffer_bytes: int = BUFFER_BYTES) -> None:
        """Args:
        disk: where blocks go.
        buffer_bytes: of memory; it has room for two blocks at least.
        """
        self.disk = disk
        self.problem = ""  # why some of it cannot be used
        size = disk.layout.payload_bytes
        self.blocks = max(2, buffer_bytes // size)  # that the buffer has room for
        self._free: list[Bytes] = list(np.empty((self.blocks, size), np.uint8))
        self._queue: deque[_Waiting] = deque()
        self._latest: dict[int, _Waiting] = {}  # by slot
        self._refused: set[int] = set()  # slots that the disk did not take
        self._changed = threading.Condition()
        self._is_closed = False
        self._write_seconds = Ewma(_WEIGHT, initial=0.0)  # for one block
        self._thread = threading.Thread(target=self._run, name="disk-writes", daemon=True)
        self._thread.start()

    def write(self, slot: int, header: SlotHeader, payload: Bytes) -> bool:
        """Takes a copy of a block, to be written soon. Blocks while the buffer is full; see `seconds`.

        Returns:
            False if the disk has refused this slot before: it can hold nothing.
        """
        with self._changed:
            if slot in self._refused:
                return False
            self._changed.wait_for(lambda: self._free)
            buffer = self._free.pop()
        buffer[:] = payload
        with self._changed:
            waiting = self._latest[slot] = _Waiting(slot, header, buffer)
            self._queue.append(waiting)
            self._changed.notify_all()
        return True

    def read(self, slot: int, target: Bytes) -> ReadResult:
        """Reads a block, wherever it lies by now; see `DiskSlots.read`."""
        with self._changed:
            if slot in self._refused:
                return ReadResult.ABSENT  # the disk may still have what it held before
            waiting = self._latest.get(slot)
            if waiting is not None:
                target[:] = waiting.payload
                return ReadResult.READ
        return self.disk.read(slot, target)

    def clear(self, slot: int) -> None:
        """Empties a slot. Waits for what is to be written there."""
        with self._changed:
            self._changed.wait_for(lambda: slot not in self._latest)
        try:
            self.disk.clear(slot)
        except OSError as error:
            self._refuse(slot, error)

    def flush(self) -> None:
        """Waits until everything is written."""
        with self._changed:
            self._changed.wait_for(lambda: not self._latest and not self._queue)

    def seconds(self, blocks: int) -> float:
        """How long a caller would have to wait for room for so many blocks."""
        with self._changed:
            return max(0, blocks - len(self._free)) * self._write_seconds.value

    def close(self) -> None:
        """Writes what waits, and closes the file."""
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()
        self._thread.join()
        self.disk.close()

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._queue or self._is_closed)
                if not self._queue:
                    return
                waiting = self._queue[0]
            start = perf_counter()
            try:
                self.disk.write(waiting.slot, waiting.header, waiting.payload)
            except OSError as error:
                self._refuse(waiting.slot, error)
            with self._changed:
                self._write_seconds.add(perf_counter() - start)
                self._queue.popleft()
                if self._latest.get(waiting.slot) is waiting:
                    del self._latest[waiting.slot]
                self._free.append(waiting.payload)
                self._changed.notify_all()

    def _refuse(self, slot: int, error: OSError) -> None:
        with self._changed:
            self._refused.add(slot)
            is_first = not self.problem
            self.problem = f"{len(self._refused)} slots of the disk tier cannot be written: {error.strerror} ({self.disk.path})"
        if is_first:
            log.warning("%s", self.problem)
