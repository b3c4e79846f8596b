"""How many copies of a block an engine holds.

vLLM computes a prompt twice if two requests bring it at once. It then caches both copies under one hash, and tells of each
when it is stored and when it is removed. Its offloading tells of a block as often as it is in a chunk. So a block has left a
medium when it was removed from there as often as it was stored.
"""

from collections.abc import Collection, Hashable


class Copies:
    """Counts the copies in each medium, by the engine's hash."""

    def __init__(self) -> None:
        self._counts: dict[Hashable, dict[bytes, int]] = {}

    def add(self, key: bytes, medium: Hashable) -> None:
        """A copy was stored."""
        counts = self._counts.setdefault(medium, {})
        counts[key] = counts.get(key, 0) + 1

    def remove(self, key: bytes, medium: Hashable) -> bool:
        """A copy was removed; returns whether it was the last one in that medium. False if none is known."""
        counts = self._counts.get(medium, {})
        count = counts.get(key, 0)
        if count > 1:
            counts[key] = count - 1
            return False
        return counts.pop(key, None) is not None

    def has(self, key: bytes) -> bool:
        """Whether there is a copy in any medium."""
        return any(key in counts for counts in self._counts.values())

    def drop(self, medium: Hashable) -> Collection[bytes]:
        """A medium is empty; returns the blocks that were in it."""
        return self._counts.pop(medium, {}).keys()

    def clear(self) -> None:
        self._counts.clear()
