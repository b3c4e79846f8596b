"""The blocks of the node's other engines, read where they lie, without a lock or a call.

Which blocks a region holds is known from its slot headers. The generations of all slots tell which of them have been written
since they were looked at last, so a second look costs a comparison of numbers.
"""

import os
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt

from pbkv_cluster.core.errors import FailedPrecondition, Unavailable
from pbkv_cluster.store.arena.arena_view import ArenaView
from pbkv_cluster.store.arena.slots import Bytes, ReadResult, SlotReader

_LOOK_S = 0.005  # a look at the regions is not repeated sooner


class _Region:
    """One region, and what it held when it was last looked at."""

    def __init__(self, reader: SlotReader) -> None:
        self.reader = reader
        self.slots: dict[bytes, int] = {}
        self._keys: list[bytes] = [b""] * reader.layout.slots
        self._seen: npt.NDArray[np.uint64] = np.ones(reader.layout.slots, np.uint64)  # odd: no slot has been looked at

    def look(self) -> None:
        now = self.reader.generations()
        for slot in np.flatnonzero(now != self._seen).tolist():
            header = self.reader.header(slot)
            old, new = self._keys[slot], b"" if header is None else header.label.key
            if old != new:
                if self.slots.get(old) == slot:
                    del self.slots[old]
                self._keys[slot] = new
            if new:
                self.slots[new] = slot
        self._seen = now


class Siblings:
    """All regions of the node's arena that hold blocks of this kind, but one's own. Safe for threads."""

    def __init__(
        self,
        arena: Path,
        is_same_kind: Callable[[SlotReader], bool],
        besides: str = "",
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        """Args:
        arena: its path.
        is_same_kind: whether a region's blocks are of this model and as long.
        besides: owner of the region that is left out.
        now: seconds.

        Raises:
            Unavailable: the file cannot be opened, or is no arena that can be read.
        """
        try:
            self.inode = os.stat(arena).st_ino
            self._view = ArenaView(arena)
        except (OSError, FailedPrecondition) as error:
            raise Unavailable(f"the arena cannot be opened: {error}") from error
        self._is_same_kind = is_same_kind
        self._besides = besides
        self._now = now
        self._lock = threading.Lock()  # for all that follows
        self._regions: dict[SlotReader, _Region] = {}
        self._looked_at = -_LOOK_S

    def find(self, key: bytes) -> bool:
        """Whether some region held a block at the last look."""
        with self._lock:
            return any(key in region.slots for region in self._regions.values())

    def look(self) -> bool:
        """Looks at all regions again, unless that was done just now; returns whether it was done here."""
        with self._lock:
            now = self._now()
            if now - self._looked_at < _LOOK_S:
                return False
            self._looked_at = now
            readers = [reader for owner, reader in self._view.regions().items() if owner != self._besides]
            self._regions = {
                reader: self._regions.get(reader) or _Region(reader) for reader in readers if self._is_same_kind(reader)
            }
            for region in self._regions.values():
                region.look()
            return True

    def read(self, key: bytes, target: Bytes) -> ReadResult:
        """Copies a block from the first region that has it whole, after another look if none is known to have it.

        Unless the result is READ, what is in `target` is worth nothing.
        """
        places = self._places(key)
        if not places and self.look():
            places = self._places(key)
        result = ReadResult.ABSENT
        for region, slot in places:
            result = region.reader.read(slot, key, target)
            if result is ReadResult.READ:
                return result
            with self._lock:  # until it is written again
                if region.slots.get(key) == slot:
                    del region.slots[key]
        return result

    def _places(self, key: bytes) -> list[tuple[_Region, int]]:
        with self._lock:
            return [(region, slot) for region in self._regions.values() if (slot := region.slots.get(key)) is not None]

    def close(self) -> None:
        """No block may be read any more."""
        with self._lock:
            self._regions.clear()
            self._view.close()
