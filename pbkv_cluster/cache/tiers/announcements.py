"""Tells a listener where each block lies, and where other processes can read it once it has arrived there."""

from collections.abc import Callable, Sequence, Set
from typing import NamedTuple

from pbkv_cluster.cache.tiers.tier import CacheTier
from pbkv_cluster.cache.tree.node import ABSENT, GPU, Node, Slots, new_slots
from pbkv_cluster.core.blocks import BlockLabel
from pbkv_cluster.core.locations.residency import Residency
from pbkv_cluster.core.usage import Tier

ChangeListener = Callable[[BlockLabel, Residency], None]
"""Told of each block that has entered or left a tier, and where it lies now or is on its way to; of one that was on its way to
where others can read it, again when it is there."""

_ON_ITS_WAY = -2  # in place of a slot


class _Arriving(NamedTuple):
    """A block that the listener is to hear of again."""

    label: BlockLabel
    there: Residency  # once it has arrived
    tier: Tier  # in which the slot is


class Announcements:
    """Where a node's blocks lie: the kinds of their tiers, and their slots in the fastest tier after the GPU.

    Others would read a slot for nothing, and no more after that, if they knew of it before the bytes are there. So a block has
    no slot while a transfer is to write it, or has failed to.
    """

    def __init__(self, tiers: Sequence[CacheTier], listener: ChangeListener | None) -> None:
        """Args:
        tiers: from the fastest to the slowest.
        listener: None: nobody is told.
        """
        self._listener = listener
        self._tiers = tiers
        self._pools = {tier.kind: tier.pool for tier in tiers}
        self._arriving: dict[bytes, _Arriving] = {}  # by block key
        self._keys: dict[tuple[Tier, int], bytes] = {}  # of these, by slot
        # One for each combination of tiers: bit n of its index stands for tier n.
        self._sets = [frozenset(tier.kind for tier in tiers if bits >> tier.index & 1) for bits in range(1 << len(tiers))]
        self._without_slot = [Residency(kinds) for kinds in self._sets]

    @property
    def arriving(self) -> int:
        """Blocks that the listener is to hear of again when transfers have ended."""
        return len(self._arriving)

    def announce(self, node: Node, start: int, stop: int) -> None:
        """Tells the listener where a node's blocks from `start` to `stop` lie."""
        if self._listener is not None:
            labels, residencies = node.labels(range(start, stop)), self.residencies(node, start, stop)
            for block, label, residency in zip(range(start, stop), labels, residencies, strict=True):
                if self._arriving:
                    self._forget(label.key)
                if residency.slot == ABSENT:
                    self._expect(node, block, label, residency)
                self._listener(label, residency)

    def settle(self, kind: Tier, slots: Slots) -> None:
        """Called when a transfer to slots of a tier has ended: tells the listener of the blocks that have arrived."""
        for slot in slots if self._arriving else ():
            if (key := self._keys.get((kind, slot))) is not None:
                label, there, _ = self._arriving[key]
                self._forget(key)
                if self._listener is not None and slot not in self._pools[kind].unwritten():
                    self._listener(label, there)

    def residencies(self, node: Node, start: int, stop: int) -> list[Residency]:
        """Where each of a node's blocks from `start` to `stop` lies."""
        bits, shared = [0] * (stop - start), [ABSENT] * (stop - start)
        for number, slots in enumerate(node.slots):
            if slots:
                bit, own = 1 << number, slots[start:stop]
                bits = [known if slot == ABSENT else known | bit for known, slot in zip(bits, own, strict=True)]
                if number != GPU:
                    if late := self._late(number):
                        own = new_slots(_ON_ITS_WAY if slot in late else slot for slot in own)
                    shared = [slot if known == ABSENT else known for known, slot in zip(shared, own, strict=True)]
        return [
            self._without_slot[each] if slot < 0 else Residency(self._sets[each], slot, node.sheltered)
            for each, slot in zip(bits, shared, strict=True)
        ]

    def _late(self, number: int) -> Set[int]:
        """Slots of a tier without their blocks: a transfer is to write them, or is only planned, or has failed."""
        late = self._tiers[number].pool.unwritten()
        for tier in self._tiers:
            if tier.demotions and tier.slower is self._tiers[number]:
                late = late | tier.demotions.keys()
        return late

    def _expect(self, node: Node, block: int, label: BlockLabel, residency: Residency) -> None:
        """If a block is on its way to where others can read it, keeps what the listener is to be told then."""
        tier = next((tier for tier in self._tiers[GPU + 1 :] if tier.kind in residency.tiers), None)
        if tier is not None:
            slot = node.slots[tier.index][block]
            self._arriving[label.key] = _Arriving(label, Residency(residency.tiers, slot, node.sheltered), tier.kind)
            self._keys[tier.kind, slot] = label.key

    def _forget(self, key: bytes) -> None:
        if (known := self._arriving.pop(key, None)) is not None:
            del self._keys[known.tier, known.there.slot]
