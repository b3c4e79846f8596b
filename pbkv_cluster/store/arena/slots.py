"""The slots of one region, as their owner writes them and as any process of the node reads them.

No lock protects a slot. Its generation is odd while its owner writes it, and another number each time that it is written. A
reader takes the generation, copies, and takes the generation again: if it was even and has not changed, the copy is whole.
That rests on two properties of x86: a processor sees the stores of another in the order in which they were made, and does
not reorder its own loads; and an aligned word of 8 bytes is never seen half written. (numpy makes such a store with one
instruction, and does not move it past a copy, which is another call.) Elsewhere the checksum alone decides. It is compared
for every block that another process has written, so a mixed slot is not believed there either.
"""

import time
from collections.abc import Callable, Iterator
from enum import Enum
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
from xxhash import xxh3_64_intdigest as checksum

from pbkv_cluster.core.blocks import BlockLabel
from pbkv_cluster.store.arena.layout import (
    GENERATION_BYTES,
    REGION_HEADER,
    SLOT,
    SLOT_BYTES,
    RegionLayout,
    SlotHeader,
)

Bytes: TypeAlias = "npt.NDArray[np.uint8]"

_EMPTY = bytes(SLOT_BYTES - GENERATION_BYTES)


class ReadResult(Enum):
    """What became of an attempt to read a block."""

    READ = "read"
    ABSENT = "absent"  # the slot is empty, is being written, or holds another block
    OVERWRITTEN = "overwritten"  # it changed while it was read
    DAMAGED = "damaged"  # the bytes do not have the checksum that was stored with them


class SlotReader:
    """Reads the slots of a region; whose region it is does not matter."""

    def __init__(self, memory: memoryview, layout: RegionLayout) -> None:
        """Args:
        memory: of the region.
        layout: of the region.
        """
        self.layout = layout
        self._memory = memory
        self._headers = np.frombuffer(memory, dtype=SLOT, count=layout.slots, offset=layout.headers)
        self._generations = self._headers["generation"]
        payloads = np.frombuffer(memory, np.uint8, layout.slots * layout.payload_bytes, layout.payloads)
        self._payloads: Bytes = payloads.reshape(layout.slots, layout.payload_bytes)

    @property
    def model(self) -> bytes:
        """Digest of what the blocks of all its namespaces share, as the region's header has it."""
        model: bytes = REGION_HEADER.unpack_from(self._memory)[-1]
        return model

    def header(self, slot: int) -> SlotHeader | None:
        """What a slot holds now; None if nothing, or nothing that can be believed."""
        return self._header(slot)[1]

    def headers(self) -> Iterator[tuple[int, SlotHeader]]:
        """Every slot that holds a block, and its header. The payloads are not looked at."""
        for slot in np.flatnonzero(self._headers["length"]).tolist():
            header = self.header(slot)
            if header is not None:
                yield slot, header

    def find(self, key: bytes) -> int | None:
        """A slot that seems to hold a block, found by comparing the keys of all slots; `read` tells whether it does."""
        first, second = np.frombuffer(key, "<u8")
        keys = self._headers["key"]
        found = np.flatnonzero((keys["f0"] == first) & (keys["f1"] == second) & (self._headers["length"] != 0))
        return int(found[-1]) if len(found) else None

    def read(self, slot: int, key: bytes, target: Bytes) -> ReadResult:
        """Copies a block's payload; unless the result is READ, what is in `target` then is worth nothing.

        Args:
            slot: where it was.
            key: of the block.
            target: as long as a payload.
        """
        generation, header = self._header(slot)
        if header is None or header.label.key != key or header.length != target.nbytes:
            return ReadResult.ABSENT
        target[:] = self._payloads[slot]
        if int(self._generations[slot]) != generation:
            return ReadResult.OVERWRITTEN
        return ReadResult.READ if checksum(target.data) == header.payload_sum else ReadResult.DAMAGED

    def verify(self, slot: int, key: bytes) -> ReadResult:
        """Compares a block's payload with its checksum where it lies; results as those of `read`."""
        generation, header = self._header(slot)
        if header is None or header.label.key != key:
            return ReadResult.ABSENT
        sound = checksum(self._payloads[slot].data) == header.payload_sum
        if int(self._generations[slot]) != generation:
            return ReadResult.OVERWRITTEN
        return ReadResult.READ if sound else ReadResult.DAMAGED

    def holds(self, slot: int, key: bytes) -> bool:
        """Whether a slot seems to hold a block: its header says so. The payload is not looked at."""
        header = self.header(slot) if 0 <= slot < self.layout.slots else None
        return header is not None and header.label.key == key

    def packed_header(self, slot: int, key: bytes) -> bytes | None:
        """The header of a slot as it lies in memory, with its generation; None unless it holds this block now."""
        if slot >= self.layout.slots:
            return None
        generation, header = self._header(slot)
        if header is None or header.label.key != key or header.length != self.layout.payload_bytes:
            return None
        return (generation.to_bytes(GENERATION_BYTES, "little") + header.pack()).ljust(SLOT_BYTES, b"\0")

    def generation(self, slot: int) -> int:
        """A number that changes whenever the slot is written; odd while it is."""
        return int(self._generations[slot])

    def generations(self) -> "npt.NDArray[np.uint64]":
        """A copy of all slots' numbers: those that differ from an earlier copy tell which slots have been written since."""
        return self._generations.copy()

    def payload(self, slot: int) -> memoryview:
        """The bytes that lie in a slot, whatever they are. To be believed, the generation must be the same before and after."""
        start = self.layout.payloads + slot * self.layout.payload_bytes
        return self._memory[start : start + self.layout.payload_bytes]

    def _header(self, slot: int) -> tuple[int, SlotHeader | None]:
        generation = int(self._generations[slot])
        if generation % 2:
            return generation, None
        start = self.layout.headers + slot * SLOT_BYTES
        packed = bytes(self._memory[start + GENERATION_BYTES : start + SLOT_BYTES])
        if int(self._generations[slot]) != generation:
            return generation, None
        return generation, SlotHeader.unpack(packed)


class RegionSlots(SlotReader):
    """The slots of a region that this process owns: nobody else writes them."""

    def __init__(self, memory: memoryview, layout: RegionLayout, model: bytes, wall: Callable[[], float] = time.time) -> None:
        """Keeps the blocks that the region holds if it has this layout and they are of this model; otherwise formats it.

        Args:
            memory: of the region, writable.
            layout: that the region shall have.
            model: what the blocks of all its namespaces share, as a digest of 16 bytes.
            wall: seconds since the epoch.
        """
        super().__init__(memory, layout)
        self._wall = wall
        header = layout.pack(model)
        if bytes(memory[: len(header)]) != header:
            self._format(header)

    @property
    def payloads(self) -> memoryview:
        """The payloads of all slots, one after the other."""
        return self._memory[self.layout.payloads : self.layout.size]

    def write(self, slot: int, label: BlockLabel, source: Bytes) -> None:
        """Stores a block.

        Args:
            slot: that takes it; what it held before is gone.
            label: of the block.
            source: its payload.
        """
        self.begin(slot)
        self._payloads[slot] = source
        self.end(slot, label)

    def begin(self, slot: int) -> None:
        """What the slot held is gone, and its payload may be written from now on. `end` must follow, or `clear`."""
        self._generations[slot] = (int(self._generations[slot]) + 1) | 1

    def end(self, slot: int, label: BlockLabel) -> None:
        """The payload has been written: the slot now holds the block that `label` names."""
        payload = self._payloads[slot]
        self._end(slot, SlotHeader(label, payload.nbytes, self._wall(), checksum(payload.data)).pack())

    def clear(self, slot: int) -> None:
        """Empties a slot."""
        self.begin(slot)
        self._end(slot, _EMPTY)

    def is_sound(self, slot: int, verify: bool) -> bool:
        """Whether a slot holds a block that can be believed.

        Args:
            slot: of this process, which does not write it meanwhile.
            verify: compare the payload with its checksum, and not only the header with its own.
        """
        header = self.header(slot)
        return header is not None and (not verify or checksum(self._payloads[slot].data) == header.payload_sum)

    def _end(self, slot: int, packed: bytes) -> None:
        start = self.layout.headers + slot * SLOT_BYTES + GENERATION_BYTES
        self._memory[start : start + len(packed)] = packed
        self._generations[slot] += 1

    def _format(self, header: bytes) -> None:
        self._memory[: REGION_HEADER.size] = bytes(REGION_HEADER.size)  # so that nobody takes it for the old or the new region
        # Generations that no reader has seen: one that began before must not find the number that it has read.
        self._generations[:] = time.time_ns() // 2 * 2
        slots = np.frombuffer(self._memory, np.uint8, self.layout.slots * SLOT_BYTES, self.layout.headers)
        slots.reshape(-1, SLOT_BYTES)[:, GENERATION_BYTES:] = 0
        self._memory[: len(header)] = header
