"""Moves the bytes of blocks between tiers. The cache decides what goes where; a mover only carries."""

from collections.abc import Sequence
from typing import Protocol

from pbkv_cluster.cache.tree.node import Level


class Mover(Protocol):
    """Carries blocks between the pools of one process."""

    def copy(self, source: Level, source_slots: Sequence[int], target: Level, target_slots: Sequence[int]) -> None:
        """Copies whole blocks, pairwise. When it returns, source slots may be given away and target slots read by whatever is
        queued on the device after it.
        """
        ...

    def seconds(self, source: Level, target: Level, blocks: int) -> float:
        """How long such a copy takes, as measured lately."""
        ...


class NullMover:
    """Carries nothing: for a cache without bytes, in tests and simulations."""

    def copy(self, source: Level, source_slots: Sequence[int], target: Level, target_slots: Sequence[int]) -> None:
        assert len(source_slots) == len(target_slots)

    def seconds(self, source: Level, target: Level, blocks: int) -> float:
        return 0.0
