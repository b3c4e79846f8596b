"""Slots in a file of fixed size, laid out as a region of the arena. One process at a time reads and writes them.

They are written with `pwrite` and read with `pread`: an error of the disk is an error here, and not the end of the process,
as it would be with a mapping.
"""

import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from xxhash import xxh3_64_intdigest as checksum

from pbkv_cluster.core.errors import StartupError, Unavailable
from pbkv_cluster.store.arena.layout import GENERATION_BYTES, PAGE, SLOT_BYTES, RegionLayout, SlotHeader
from pbkv_cluster.store.arena.region_lock import try_lock
from pbkv_cluster.store.arena.slots import Bytes, ReadResult

_EMPTY = bytes(SLOT_BYTES)
_HEADERS_AT_ONCE = 4096
_LOCKED = 1  # byte of the file
_ATTEMPTS = 20
PAUSE_S = 0.5


def open_disk(path: Path, layout: RegionLayout, model: bytes) -> "DiskSlots":
    """The slots of a file, as `DiskSlots` has them. Waits for the last process of the same worker, which may still be ending.

    Raises:
        StartupError: the file cannot be used; says why.
    """
    for _ in range(_ATTEMPTS):
        try:
            return DiskSlots(path, layout, model)
        except Unavailable as error:
            refused = error
            time.sleep(PAUSE_S)
    raise StartupError(f"engine.disk_path: {refused}") from refused


class DiskSlots:
    """The slots of one file. A slot's generation is not used: nobody reads it while it is written."""

    def __init__(self, path: Path, layout: RegionLayout, model: bytes) -> None:
        """Keeps the blocks that the file holds if it has this layout and they are of this model; otherwise makes it anew.

        Args:
            path: of the file; its folder is made if need be.
            layout: that the file shall have.
            model: what the blocks of all its namespaces share, as a digest of 16 bytes.

        Raises:
            StartupError: the disk has no room for the file, or cannot be written.
            Unavailable: another process uses the file.
        """
        self.layout = layout
        self.path = path
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise StartupError(f"engine.disk_path: {path} cannot be opened: {error.strerror}") from error
        try:
            if not try_lock(self._file, 0, _LOCKED):
                raise Unavailable(f"another process uses {path}")
            header = layout.pack(model)
            if os.fstat(self._file).st_size != layout.size or os.pread(self._file, len(header), 0) != header:
                self._format(header)
        except OSError as error:
            os.close(self._file)
            raise StartupError(f"engine.disk_path: {path} cannot be used: {error.strerror}") from error
        except BaseException:
            os.close(self._file)
            raise
        # Slots whose header is not empty: clearing the others would be as many writes for nothing.
        self._written = np.zeros(layout.slots, np.bool_)

    def headers(self) -> Iterator[tuple[int, SlotHeader]]:
        """Every slot that holds a block, and its header. The payloads are not looked at.

        Raises:
            OSError: the disk cannot be read.
        """
        for first in range(0, self.layout.slots, _HEADERS_AT_ONCE):
            count = min(_HEADERS_AT_ONCE, self.layout.slots - first)
            packed = os.pread(self._file, count * SLOT_BYTES, self.layout.headers + first * SLOT_BYTES)
            for number in range(len(packed) // SLOT_BYTES):
                header = packed[number * SLOT_BYTES : (number + 1) * SLOT_BYTES]
                if header == _EMPTY:
                    continue
                self._written[first + number] = True
                found = SlotHeader.unpack(header[GENERATION_BYTES:])
                if found is not None and found.length == self.layout.payload_bytes:
                    yield first + number, found

    def write(self, slot: int, header: SlotHeader, payload: Bytes) -> None:
        """Stores a block. What the slot held is gone even if this fails; a slot that is half written holds nothing.

        Raises:
            OSError: the disk does not take it.
        """
        self.clear(slot)
        self._written[slot] = True
        self._pwrite(payload.data, self._payload(slot))
        self._pwrite(bytes(GENERATION_BYTES) + header.pack(), self._header(slot))

    def read(self, slot: int, target: Bytes) -> ReadResult:
        """Reads a block; unless the result is READ, what is in `target` then is worth nothing. An unreadable one is damaged."""
        try:
            packed = os.pread(self._file, SLOT_BYTES, self._header(slot))
            header = SlotHeader.unpack(packed[GENERATION_BYTES:]) if len(packed) == SLOT_BYTES else None
            if header is None or header.length != target.nbytes:
                return ReadResult.ABSENT
            filled = 0
            while filled < target.nbytes:
                count = os.preadv(self._file, [target.data[filled:]], self._payload(slot) + filled)
                if not count:
                    return ReadResult.DAMAGED
                filled += count
        except OSError:
            return ReadResult.DAMAGED
        return ReadResult.READ if checksum(target.data) == header.payload_sum else ReadResult.DAMAGED

    def verify(self, slot: int, key: bytes, room: Bytes) -> ReadResult:
        """Compares a block's payload with its checksum. Another thread may write the slot meanwhile; ABSENT, if it has.

        Args:
            slot: of the block.
            key: of the block.
            room: for a payload.
        """
        try:
            before = self._key(slot)
            result = self.read(slot, room) if before == key else ReadResult.ABSENT
            return result if self._key(slot) == before else ReadResult.ABSENT
        except OSError:
            return ReadResult.DAMAGED  # nor could a step read it

    def clear(self, slot: int) -> None:
        """Empties a slot.

        Raises:
            OSError: the disk does not take it.
        """
        if self._written[slot]:
            self._pwrite(_EMPTY, self._header(slot))
            self._written[slot] = False

    def close(self) -> None:
        """Closes the file, which another process may use then."""
        os.close(self._file)

    def _key(self, slot: int) -> bytes | None:
        """Of the block in a slot; None: it holds none.

        Raises:
            OSError: the disk cannot be read.
        """
        packed = os.pread(self._file, SLOT_BYTES, self._header(slot))
        header = SlotHeader.unpack(packed[GENERATION_BYTES:]) if len(packed) == SLOT_BYTES else None
        return None if header is None else header.label.key

    def _header(self, slot: int) -> int:
        return self.layout.headers + slot * SLOT_BYTES

    def _payload(self, slot: int) -> int:
        return self.layout.payloads + slot * self.layout.payload_bytes

    def _pwrite(self, data: bytes | memoryview, offset: int) -> None:
        view = memoryview(data)
        while len(view):
            count = os.pwrite(self._file, view, offset)
            view, offset = view[count:], offset + count

    def _format(self, header: bytes) -> None:
        os.ftruncate(self._file, 0)
        free = shutil.disk_usage(self.path.parent).free
        try:
            if free < self.layout.size:
                raise OSError
            os.posix_fallocate(self._file, 0, max(self.layout.size, PAGE))
        except OSError as error:
            self.path.unlink()
            raise StartupError(
                f"engine.disk_bytes: {self.path.parent} has no room for {self.layout.size} bytes: {free} are free"
            ) from error
        os.pwrite(self._file, header, 0)
