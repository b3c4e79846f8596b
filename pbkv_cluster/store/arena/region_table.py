"""The table of an arena's regions, in the arena itself: written by the node's host store, read by anyone who has the file."""

import mmap
import os
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np

from pbkv_cluster.core.errors import FailedPrecondition
from pbkv_cluster.store.arena.layout import (
    ARENA_HEADER,
    ARENA_MAGIC,
    DATA_OFFSET,
    MAX_REGIONS,
    REGION_ENTRY,
    TABLE_OFFSET,
    VERSION,
    check_version,
)


class RegionPlace(NamedTuple):
    """Bytes `offset` to `offset + size` of the arena's file belong to a process."""

    owner: str
    offset: int
    size: int


class RegionTable:
    """Entries have generations as slots do, so that a reader never sees half of one."""

    def __init__(self, file: int, writable: bool, capacity: int = 0) -> None:
        """Args:
        file: of the arena, open.
        writable: for the host store; readers cannot change anything.
        capacity: bytes that regions may take; 0: the file has a table already.

        Raises:
            FailedPrecondition: the file is no arena, or its layout has another version.
        """
        self._file = file
        protection = mmap.PROT_READ | (mmap.PROT_WRITE if writable else 0)
        self._memory = mmap.mmap(file, data_offset(page_bytes(file)), mmap.MAP_SHARED, protection)
        if capacity:
            self._memory[: ARENA_HEADER.size] = ARENA_HEADER.pack(ARENA_MAGIC, VERSION, capacity)
        magic, version, self.capacity = ARENA_HEADER.unpack_from(self._memory)
        if magic != ARENA_MAGIC:
            raise FailedPrecondition("the file is not an arena")
        check_version(version, "the header")
        self._entries = np.frombuffer(self._memory, REGION_ENTRY, MAX_REGIONS, TABLE_OFFSET)
        if capacity:
            self._entries["generation"] = 0  # takes the table's memory now

    def __iter__(self) -> Iterator[RegionPlace]:
        """The regions that exist now."""
        for number in np.flatnonzero(self._entries["length"]).tolist():
            place = self._read(number)
            if place is not None:
                yield place

    def close(self) -> None:
        """Gives the mapping back, which keeps the file open."""
        del self._entries
        self._memory.close()

    def repair(self) -> None:
        """Removes entries that a host store was writing when it was killed. Nobody has been told of such a region."""
        for number in np.flatnonzero(self._entries["generation"] % 2).tolist():
            self._write(int(number), None)

    def put(self, place: RegionPlace) -> None:
        """Adds a region, or replaces the owner's. There must be room: at most `MAX_REGIONS` owners have one."""
        number = self._number(place.owner)
        if number is None:
            number = int(np.flatnonzero(self._entries["length"] == 0)[0])
        self._write(number, place)

    def remove(self, owner: str) -> None:
        """Removes an owner's region, if it is there."""
        number = self._number(owner)
        if number is not None:
            self._write(number, None)

    def bind(self, bind: Callable[[int, int, int], None], node: int) -> None:
        """Binds the whole segment to a NUMA node: called with the address and size of a mapping of it, and the node."""
        with mmap.mmap(self._file, 0) as whole:
            address = np.frombuffer(whole, np.uint8)
            bind(address.ctypes.data, len(whole), node)
            del address  # else the mapping cannot be closed

    def _number(self, owner: str) -> int | None:
        for number in np.flatnonzero(self._entries["length"]).tolist():
            if self._name(number) == owner:
                return int(number)
        return None

    def _name(self, number: int) -> str:
        entry = self._entries[number]
        return bytes(entry["owner"])[: int(entry["length"])].decode(errors="replace")

    def _read(self, number: int) -> RegionPlace | None:
        entries = self._entries
        while True:
            generation = int(entries["generation"][number])
            place = RegionPlace(self._name(number), int(entries["offset"][number]), int(entries["size"][number]))
            exists = bool(entries["length"][number])
            if generation == int(entries["generation"][number]):
                # Odd: the host store is writing it, or has died while it did.
                return place if exists and generation % 2 == 0 else None

    def _write(self, number: int, place: RegionPlace | None) -> None:
        entry = self._entries
        entry["generation"][number] = (int(entry["generation"][number]) + 1) | 1
        name = b"" if place is None else place.owner.encode()
        entry["offset"][number], entry["size"][number] = (0, 0) if place is None else (place.offset, place.size)
        entry["owner"][number] = name.ljust(REGION_ENTRY["owner"].itemsize, b"\0")
        entry["length"][number] = len(name)
        entry["generation"][number] += 1


def page_bytes(file: int) -> int:
    """Size of the pages that a segment is made of."""
    return os.fstat(file).st_blksize


def data_offset(page: int) -> int:
    """Where the first region may be, with pages of `page` bytes."""
    return -(-DATA_OFFSET // page) * page
