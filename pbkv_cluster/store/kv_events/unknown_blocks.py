"""Blocks that an engine has told of and that are not known: how many, in each medium."""

from collections import Counter
from collections.abc import Hashable


class UnknownBlocks:
    """Counts them until their medium is empty. That one of them leaves it is not noticed."""

    def __init__(self) -> None:
        self._left_out = Counter[Hashable]()
        self._orphans = Counter[Hashable]()

    def __len__(self) -> int:
        """In all media."""
        return self.left_out + self.orphans

    @property
    def left_out(self) -> int:
        """For want of room."""
        return self._left_out.total()

    @property
    def orphans(self) -> int:
        """Whose prefix is not known."""
        return self._orphans.total()

    def leave_out(self, blocks: int, medium: Hashable) -> None:
        """There was no room for some blocks."""
        self._left_out[medium] += blocks

    def orphan(self, blocks: int, medium: Hashable) -> None:
        """The prefix of some blocks is not known."""
        self._orphans[medium] += blocks

    def drop(self, medium: Hashable) -> None:
        """A medium is empty."""
        del self._left_out[medium], self._orphans[medium]

    def clear(self) -> None:
        self._left_out.clear()
        self._orphans.clear()
