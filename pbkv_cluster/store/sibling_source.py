"""Reads blocks of other workers of the node from their regions of the arena, without a lock or a call."""

import logging
import mmap
from collections.abc import Sequence
from typing import NamedTuple

from pbkv_cluster.core.errors import FailedPrecondition
from pbkv_cluster.store.arena.layout import REGION_HEADER, RegionLayout
from pbkv_cluster.store.arena.region_table import RegionPlace, RegionTable
from pbkv_cluster.store.arena.slots import Bytes, ReadResult, SlotReader
from pbkv_cluster.store.block_source import BlockPlace

log = logging.getLogger(__name__)


class _Mapped(NamedTuple):
    """A region as it was when it was mapped."""

    place: RegionPlace
    header: bytes
    memory: memoryview
    reader: SlotReader | None  # None: its blocks are no use here


class SiblingSource:
    """A source of blocks in the same arena. A region is mapped when it is first asked for, and again when it has changed."""

    def __init__(self, file: int, model: bytes, payload_bytes: int) -> None:
        """Args:
        file: of the arena, open for as long as this object is used.
        model: digest of what the blocks of all its namespaces share; regions of other models are not read.
        payload_bytes: of a block.

        Raises:
            FailedPrecondition: the file is no arena, or one of another version.
        """
        self._file = file
        self._model = model
        self._payload_bytes = payload_bytes
        self._table = RegionTable(file, writable=False)
        self._regions: dict[str, _Mapped] = {}

    def connect(self, node: str) -> None:
        """See `BlockSource.connect`: the arena is open."""

    def read(self, wanted: Sequence[tuple[bytes, BlockPlace]], targets: Sequence[Bytes]) -> Sequence[ReadResult]:
        """See `BlockSource.read`."""
        places = {place.owner: place for place in self._table}
        readers = {owner: self._reader(owner, places.get(owner)) for owner in {place.region for _, place in wanted}}
        return [
            _read(readers[place.region], place.slot, key, target) for (key, place), target in zip(wanted, targets, strict=True)
        ]

    def _reader(self, owner: str, place: RegionPlace | None) -> SlotReader | None:
        if place is None or not place.size:
            self._regions.pop(owner, None)
            return None
        mapped = self._regions.get(owner)
        if mapped is None or mapped.place != place or bytes(mapped.memory[: REGION_HEADER.size]) != mapped.header:
            self._regions.pop(owner, None)
            mapped = self._map(place)
            if mapped is None:
                return None
            self._regions[owner] = mapped
        return mapped.reader

    def _map(self, place: RegionPlace) -> _Mapped | None:
        """None: it cannot be mapped, as this process has too many mappings, or the file has become shorter."""
        try:
            mapping = mmap.mmap(self._file, place.size, mmap.MAP_SHARED, mmap.PROT_READ, offset=place.offset)
        except (OSError, ValueError) as error:
            log.warning("blocks of worker %s are not read: %s", place.owner, error)
            return None
        memory = memoryview(mapping)
        header = bytes(memory[: REGION_HEADER.size])
        reader = None
        try:
            layout = RegionLayout.unpack(memory)
        except FailedPrecondition as error:
            log.warning("blocks of worker %s are not read: %s", place.owner, error)
        else:
            if layout is not None and layout.payload_bytes == self._payload_bytes and header == layout.pack(self._model):
                reader = SlotReader(memory, layout)
        return _Mapped(place, header, memory, reader)


def _read(reader: SlotReader | None, slot: int, key: bytes, target: Bytes) -> ReadResult:
    if reader is None or not 0 <= slot < reader.layout.slots:
        return ReadResult.ABSENT
    return reader.read(slot, key, target)
