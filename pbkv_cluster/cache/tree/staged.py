"""Which blocks of a node were brought to host memory ahead of their use, and why."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple

from pbkv_cluster.core.usage import Tier


class Staged(NamedTuple):
    """Blocks of one node that were staged for one reason from one place, and that no step has used since."""

    reason: str  # see `PrefetchSource`
    source: Tier  # where they lay
    mask: int  # bit i: block i

    def numbers(self) -> Iterator[int]:
        """Of these blocks, within their node."""
        return (block for block in range(self.mask.bit_length()) if self.mask >> block & 1)

    @property
    def blocks(self) -> int:
        return self.mask.bit_count()

    def split(self, blocks: int) -> tuple[Staged | None, Staged | None]:
        """Those of a node's first `blocks` blocks, and the others, numbered from there."""
        upper, lower = self.mask & ((1 << blocks) - 1), self.mask >> blocks
        return self._replace(mask=upper) if upper else None, self._replace(mask=lower) if lower else None

    def and_those(self, others: Staged) -> Staged:
        """With others of the node, staged for the same reason from the same place."""
        assert others[:2] == self[:2]
        assert not others.mask & self.mask, "a block was staged twice"
        return self._replace(mask=self.mask | others.mask)

    def without(self, blocks: Iterable[int]) -> Staged | None:
        """All but some."""
        mask = self.mask & ~mask_of(blocks)
        return self._replace(mask=mask) if mask else None


def mask_of(blocks: Iterable[int]) -> int:
    """A bit for each block."""
    return sum(1 << block for block in blocks)
