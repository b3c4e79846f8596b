"""Where blocks lie outside a worker's own tiers, and how they are read from there."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from pbkv_cluster.core.usage import Tier
from pbkv_cluster.store.arena.slots import Bytes, ReadResult


@dataclass(frozen=True, slots=True)
class BlockPlace:
    """Where a block's bytes lie, as the cluster index says; the slot itself decides."""

    node: str
    region: str  # id of the worker whose region it is
    slot: int
    tier: Tier
    sheltered: bool = False  # there for another worker: the first to leave


class BlockSource(Protocol):
    """Reads blocks that another process has stored."""

    def connect(self, node: str) -> None:
        """Sees to it that a read from a node begins at once: what it takes to reach the node is not the time of a read.

        Raises:
            Unavailable: the node does not answer.
        """
        ...

    def read(self, wanted: Sequence[tuple[bytes, BlockPlace]], targets: Sequence[Bytes]) -> Sequence[ReadResult]:
        """Copies the payloads of blocks; called on a copy thread, which it blocks.

        Args:
            wanted: key and place of each block.
            targets: where each goes, as long as a payload. Worth nothing unless the block's result is READ.

        Returns:
            The result of each block, in order: one that is not there is ABSENT, and the checksum of one that is READ is right.

        Raises:
            Unavailable: the source does not answer.
        """
        ...
