"""Tells a listener which tiers hold each block."""

from collections.abc import Callable, Sequence

from pbkv_cluster.cache.tree.node import ABSENT, Node
from pbkv_cluster.core.usage import Tier

ChangeListener = Callable[[bytes, frozenset[Tier]], None]
"""Told the key of each block whose tiers have changed, and the tiers that hold it now or that it is on its way to."""


class Announcements:
    """Which tiers hold a node's blocks, as sets of their kinds."""

    def __init__(self, kinds: Sequence[Tier], listener: ChangeListener | None) -> None:
        self._listener = listener
        # One set for each combination of tiers: bit n of its index stands for tier n.
        self._sets = [
            frozenset(kind for number, kind in enumerate(kinds) if bits >> number & 1) for bits in range(1 << len(kinds))
        ]

    def announce(self, node: Node, start: int, stop: int) -> None:
        """Tells the listener which tiers hold a node's blocks from `start` to `stop`."""
        if self._listener is not None:
            for block, kinds in enumerate(self.kinds(node, start, stop), start):
                self._listener(node.key(block), kinds)

    def kinds(self, node: Node, start: int, stop: int) -> list[frozenset[Tier]]:
        """The tiers that hold each of a node's blocks from `start` to `stop`."""
        bits = [0] * (stop - start)
        for number, slots in enumerate(node.slots):
            if slots:
                bit = 1 << number
                bits = [known if slot == ABSENT else known | bit for known, slot in zip(bits, slots[start:stop], strict=True)]
        return [self._sets[each] for each in bits]
