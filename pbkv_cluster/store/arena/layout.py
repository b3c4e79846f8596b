"""The layout of an arena: where its table of regions is, and what a region and a slot say of themselves.

    arena    header | table of regions | region | region | ...
    region   header | slot headers | payloads

All numbers are little-endian; every word that is written while others read it is aligned to its 8 bytes.
"""

import mmap
import struct
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from xxhash import xxh3_64_intdigest as checksum

from pbkv_cluster.core.blocks import BlockLabel
from pbkv_cluster.core.errors import FailedPrecondition

VERSION = 1  # of the layout; programs of different versions do not read each other's arenas
MAX_REGIONS = 1024  # as many as a cluster may have workers
PAGE = mmap.PAGESIZE

ARENA_HEADER = struct.Struct("<8sQQ")  # magic, version, bytes that regions may take
ARENA_MAGIC = b"pbkv-arn"
REGION_ENTRY = np.dtype([("generation", "<u8"), ("offset", "<u8"), ("size", "<u8"), ("length", "<u8"), ("owner", "V256")])
TABLE_OFFSET = PAGE
DATA_OFFSET: int = TABLE_OFFSET + -(-MAX_REGIONS * REGION_ENTRY.itemsize // PAGE) * PAGE

REGION_HEADER = struct.Struct("<8sQQQ16s")  # magic, version, slots, bytes of a payload, model
REGION_MAGIC = b"pbkv-rgn"

GENERATION_BYTES = 8
SLOT_BYTES = 192  # of a slot's header
_FIELDS = struct.Struct("<16s16s16s64sQdQ")
_SUM = struct.Struct("<Q")
# The parts of slot headers that are searched.
SLOT = np.dtype(
    {
        "names": ["generation", "key", "length"],
        "formats": ["<u8", "<u8,<u8", "<u8"],
        "offsets": [0, GENERATION_BYTES, GENERATION_BYTES + 112],
        "itemsize": SLOT_BYTES,
    }
)


class SlotHeader(NamedTuple):
    """What a slot says of itself, but for its generation."""

    label: BlockLabel
    length: int  # bytes of its payload; 0: the slot is empty
    stored_at: float  # seconds since the epoch
    payload_sum: int  # xxh3 of the payload

    def pack(self) -> bytes:
        """The header's fields, and a checksum over them."""
        label = self.label
        fields = _FIELDS.pack(
            label.key, label.parent, label.namespace, label.tokens, self.length, self.stored_at, self.payload_sum
        )
        return fields + _SUM.pack(checksum(fields))

    @classmethod
    def unpack(cls, packed: bytes) -> "SlotHeader | None":
        """The header that `pack` has packed; None if it is empty or damaged."""
        fields = packed[: _FIELDS.size]
        if _SUM.unpack_from(packed, _FIELDS.size)[0] != checksum(fields):
            return None
        key, parent, namespace, tokens, length, stored_at, payload_sum = _FIELDS.unpack(fields)
        return cls(BlockLabel(namespace, parent, key, tokens), length, stored_at, payload_sum) if length else None


@dataclass(frozen=True, slots=True)
class RegionLayout:
    """Where the parts of a region are, in bytes from its start."""

    slots: int
    payload_bytes: int  # of one slot

    @property
    def headers(self) -> int:
        """Of the slots."""
        return PAGE

    @property
    def payloads(self) -> int:
        return PAGE + -(-self.slots * SLOT_BYTES // PAGE) * PAGE

    @property
    def size(self) -> int:
        """Of the whole region."""
        return self.payloads + self.slots * self.payload_bytes

    def slots_in(self, size: int) -> int:
        """How many slots with such payloads a region of `size` bytes has room for."""
        slots = max(0, size - PAGE) // (SLOT_BYTES + self.payload_bytes)
        while slots and RegionLayout(slots, self.payload_bytes).size > size:  # the headers end with a page
            slots -= 1
        return slots

    def pack(self, model: bytes) -> bytes:
        """The region's header.

        Args:
            model: what the blocks of all its namespaces share, as a digest of 16 bytes.
        """
        return REGION_HEADER.pack(REGION_MAGIC, VERSION, self.slots, self.payload_bytes, model)

    @classmethod
    def unpack(cls, memory: memoryview) -> "RegionLayout | None":
        """The layout of a region; None if it has not been formatted.

        Raises:
            FailedPrecondition: its layout has another version.
        """
        magic, version, slots, payload_bytes, _ = REGION_HEADER.unpack_from(memory)
        if magic != REGION_MAGIC:
            return None
        check_version(version, "a region")
        layout = cls(slots, payload_bytes)
        return layout if slots and layout.size <= len(memory) else None


def check_version(version: int, what: str) -> None:
    """Raises:
    FailedPrecondition: `version` is not the one that this program reads and writes.
    """
    if version != VERSION:
        raise FailedPrecondition(f"{what} of the arena has layout version {version}; this program reads version {VERSION}")
