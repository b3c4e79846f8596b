"""What has been copied between the tiers, for the worker's metrics."""

from collections.abc import Iterable
from typing import TypeAlias

from pbkv_cluster.core.usage import Tier

Lane: TypeAlias = tuple[Tier, Tier]
"""Source and target."""


class CopyMeter:
    """What has been copied since the start, by lane. Each lane has a thread of its own, which alone writes its sums."""

    def __init__(self, lanes: Iterable[Lane]) -> None:
        self.blocks = dict.fromkeys(lanes, 0)
        self.seconds = dict.fromkeys(self.blocks, 0.0)
        self._damaged = dict.fromkeys(self.blocks, 0)

    @property
    def damaged_blocks(self) -> int:
        """Blocks whose bytes did not have their checksum when they were to be loaded."""
        return sum(self._damaged.values())

    def add(self, lane: Lane, blocks: int, seconds: float) -> None:
        """Takes in a transfer."""
        self.blocks[lane] += blocks
        self.seconds[lane] += seconds

    def add_damaged(self, lane: Lane) -> None:
        """Takes in a damaged block."""
        self._damaged[lane] += 1
