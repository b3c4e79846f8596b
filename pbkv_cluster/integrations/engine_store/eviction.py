"""Which block is evicted first: of those that no other block in the region continues, the one that was used longest ago.

A block that others continue is worth nothing less than they are: without it, none of them can be used.
"""

import heapq
from collections.abc import Callable
from dataclasses import dataclass

_STALE_SHARE = 4  # entries of the heap for each block, beyond which it is built anew


@dataclass(slots=True)
class _Known:
    parent: bytes
    children: int = 0
    used: int = 0  # number of the latest use


class EvictionOrder:
    """Blocks by key. A use costs O(1), the next victim O(log n)."""

    def __init__(self) -> None:
        self._known: dict[bytes, _Known] = {}
        self._orphans: dict[bytes, int] = {}  # children of blocks that are not here, by the parent's key
        self._heap: list[tuple[int, bytes]] = []  # leaves by their latest use; entries may be out of date
        self._uses = 0

    def __len__(self) -> int:
        return len(self._known)

    def add(self, key: bytes, parent: bytes) -> None:
        """A block is there, and has just been used."""
        self._known[key] = _Known(parent, self._orphans.pop(key, 0))
        if parent in self._known:
            self._known[parent].children += 1
        else:
            self._orphans[parent] = self._orphans.get(parent, 0) + 1
        self.use(key)

    def use(self, key: bytes) -> None:
        """A block has been used; one that is not here is ignored."""
        known = self._known.get(key)
        if known is None:
            return
        self._uses += 1
        known.used = self._uses
        if not known.children:
            self._push(key, known)

    def remove(self, key: bytes) -> None:
        """A block has gone."""
        known = self._known.pop(key)
        if known.children:
            self._orphans[key] = known.children
        parent = self._known.get(known.parent)
        if parent is None:
            left = self._orphans[known.parent] - 1
            if left:
                self._orphans[known.parent] = left
            else:
                del self._orphans[known.parent]
        else:
            parent.children -= 1
            if not parent.children:
                self._push(known.parent, parent)

    def victim(self, may_go: Callable[[bytes], bool]) -> bytes | None:
        """The block that goes first among those that may. It stays until it is removed."""
        kept = []
        found = None
        while self._heap:
            used, key = self._heap[0]
            known = self._known.get(key)
            if known is None or known.used != used or known.children:
                heapq.heappop(self._heap)
            elif may_go(key):
                found = key
                break
            else:
                kept.append(heapq.heappop(self._heap))
        for entry in kept:
            heapq.heappush(self._heap, entry)
        return found

    def _push(self, key: bytes, known: _Known) -> None:
        if len(self._heap) > _STALE_SHARE * (len(self._known) + 1):
            self._heap = [(each.used, name) for name, each in self._known.items() if not each.children]
            heapq.heapify(self._heap)
        heapq.heappush(self._heap, (known.used, key))
