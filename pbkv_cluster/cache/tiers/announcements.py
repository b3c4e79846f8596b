"""Tells a listener where each block lies."""

from collections.abc import Callable, Sequence

from pbkv_cluster.cache.tree.node import ABSENT, GPU, Node
from pbkv_cluster.core.blocks import BlockLabel
from pbkv_cluster.core.locations.residency import Residency
from pbkv_cluster.core.usage import Tier

ChangeListener = Callable[[BlockLabel, Residency], None]
"""Told of each block that has entered or left a tier, and where it lies now or is on its way to."""


class Announcements:
    """Where a node's blocks lie: the kinds of their tiers, and their slots in the fastest tier after the GPU."""

    def __init__(self, kinds: Sequence[Tier], listener: ChangeListener | None) -> None:
        self._listener = listener
        # One for each combination of tiers: bit n of its index stands for tier n.
        self._sets = [
            frozenset(kind for number, kind in enumerate(kinds) if bits >> number & 1) for bits in range(1 << len(kinds))
        ]
        self._without_slot = [Residency(kinds) for kinds in self._sets]

    def announce(self, node: Node, start: int, stop: int) -> None:
        """Tells the listener where a node's blocks from `start` to `stop` lie."""
        if self._listener is not None:
            labels = node.labels(range(start, stop))
            for label, residency in zip(labels, self.residencies(node, start, stop), strict=True):
                self._listener(label, residency)

    def residencies(self, node: Node, start: int, stop: int) -> list[Residency]:
        """Where each of a node's blocks from `start` to `stop` lies."""
        bits, shared = [0] * (stop - start), [ABSENT] * (stop - start)
        for number, slots in enumerate(node.slots):
            if slots:
                bit, own = 1 << number, slots[start:stop]
                bits = [known if slot == ABSENT else known | bit for known, slot in zip(bits, own, strict=True)]
                if number != GPU:
                    shared = [slot if known == ABSENT else known for known, slot in zip(shared, own, strict=True)]
        return [
            self._without_slot[each] if slot == ABSENT else Residency(self._sets[each], slot)
            for each, slot in zip(bits, shared, strict=True)
        ]
