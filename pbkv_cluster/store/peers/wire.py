"""Requests for blocks and answers to them, to the byte. All numbers are little-endian.

    request   REQUEST | name of the region | blocks x WANTED
    answer    status | blocks x slot header | the payload of each block whose header is not empty | blocks x generation

A slot header is as it lies in the arena, with its generation, or all zeros for a block that is not there. The generations at
the end are those after the payloads have been sent: another one than in the header says that the slot was written meanwhile.
"""

import struct
from collections.abc import Sequence
from typing import NamedTuple

from pbkv_cluster.core.blocks import KEY_BYTES
from pbkv_cluster.core.checks import MAX_NAME_BYTES
from pbkv_cluster.store.arena.layout import GENERATION_BYTES, SLOT_BYTES

VERSION = 1  # of requests and answers, and of the slot headers in them
MAX_BLOCKS = 4096  # of one request
MAX_PAYLOAD_BYTES = 1 << 32  # of one block

REQUEST = struct.Struct("<IIQ")  # blocks, bytes of the region's name, bytes of a payload
WANTED = struct.Struct(f"<{KEY_BYTES}sQ")  # block key, slot
STATUS = struct.Struct("<Q")
OK, BUSY = 0, 1
GENERATION = struct.Struct("<Q")
EMPTY_HEADER = bytes(SLOT_BYTES)

assert GENERATION.size == GENERATION_BYTES


class Malformed(Exception):
    """Bytes that are no request; says why. The connection cannot be used further."""


class RequestSize(NamedTuple):
    """What the first bytes of a request say of the rest."""

    blocks: int
    name_bytes: int
    payload_bytes: int

    @classmethod
    def unpack(cls, packed: bytes) -> "RequestSize":
        """Raises Malformed."""
        size = cls(*REQUEST.unpack(packed))
        if not 1 <= size.blocks <= MAX_BLOCKS:
            raise Malformed(f"it names {size.blocks} blocks, not 1 to {MAX_BLOCKS}")
        if not 1 <= size.name_bytes <= MAX_NAME_BYTES:
            raise Malformed(f"the name of its region has {size.name_bytes} bytes, not 1 to {MAX_NAME_BYTES}")
        if not 1 <= size.payload_bytes <= MAX_PAYLOAD_BYTES:
            raise Malformed(f"its payloads have {size.payload_bytes} bytes, not 1 to {MAX_PAYLOAD_BYTES}")
        return size

    @property
    def rest_bytes(self) -> int:
        """What follows of the request."""
        return self.name_bytes + self.blocks * WANTED.size

    @property
    def answer_bytes(self) -> int:
        """Payloads that the answer has at most."""
        return self.blocks * self.payload_bytes


class Request(NamedTuple):
    """Blocks of one region."""

    region: str
    payload_bytes: int
    wanted: Sequence[tuple[bytes, int]]  # key and slot of each block

    def pack(self) -> bytes:
        name = self.region.encode()
        head = REQUEST.pack(len(self.wanted), len(name), self.payload_bytes)
        return b"".join((head, name, *(WANTED.pack(key, slot) for key, slot in self.wanted)))

    @classmethod
    def unpack(cls, size: RequestSize, rest: bytes) -> "Request":
        """Raises Malformed."""
        try:
            region = rest[: size.name_bytes].decode()
        except UnicodeDecodeError as error:
            raise Malformed("the name of its region is not UTF-8") from error
        return cls(region, size.payload_bytes, list(WANTED.iter_unpack(rest[size.name_bytes :])))
