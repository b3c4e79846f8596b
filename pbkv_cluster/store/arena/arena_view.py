"""An arena as any process of its node reads it: without a lock, and without a call to anyone."""

import logging
import mmap
import os
from collections.abc import Mapping
from pathlib import Path

from pbkv_cluster.core.errors import FailedPrecondition
from pbkv_cluster.store.arena.layout import REGION_HEADER, RegionLayout
from pbkv_cluster.store.arena.region_table import RegionPlace, RegionTable
from pbkv_cluster.store.arena.slots import SlotReader

log = logging.getLogger(__name__)


class ArenaView:
    """All regions of an arena, to read. The memory stays readable after the host store and the owners have ended.

    Not safe for threads; the readers that it returns are.
    """

    def __init__(self, path: Path) -> None:
        """Args:
        path: of the arena, as the host store gives it.

        Raises:
            FailedPrecondition: the file is no arena, or its layout has another version.
        """
        self._file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            self._table = RegionTable(self._file, writable=False)
            self._memory = memoryview(mmap.mmap(self._file, 0, mmap.MAP_SHARED, mmap.PROT_READ))
        except BaseException:
            os.close(self._file)
            raise
        self._readers: dict[RegionPlace, tuple[bytes, SlotReader | None]] = {}

    def places(self) -> list[RegionPlace]:
        """The regions that have been given out; some may be empty, or not formatted yet."""
        return list(self._table)

    def regions(self) -> Mapping[str, SlotReader]:
        """The slots of each region that has been formatted, by owner. One whose layout has another version is left out."""
        found = {place.owner: self._reader(place) for place in self._table if place.size}
        return {owner: reader for owner, reader in found.items() if reader is not None}

    def region(self, owner: str) -> SlotReader | None:
        """The slots of one region; None if it has not been given out, or not formatted yet, or not by this version."""
        places = (place for place in self._table if place.owner == owner and place.size)
        return next((self._reader(place) for place in places), None)

    def close(self) -> None:
        """Closes the file. The memory is given back when nobody refers to the readers any more."""
        self._table.close()
        os.close(self._file)

    def _reader(self, place: RegionPlace) -> SlotReader | None:
        memory = self._memory[place.offset : place.offset + place.size]
        header = bytes(memory[: REGION_HEADER.size])
        known = self._readers.get(place)
        if known is not None and known[0] == header:
            return known[1]
        for gone in self._readers.keys() - set(self._table):
            del self._readers[gone]
        reader = None
        try:
            layout = RegionLayout.unpack(memory)
        except FailedPrecondition as error:
            log.warning("blocks of %s are not read: %s", place.owner, error)
        else:
            if layout is None:
                return None
            reader = SlotReader(memory, layout)
        self._readers[place] = header, reader
        return reader
