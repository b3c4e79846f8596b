"""Where one worker holds a block, as a value and as a number."""

from typing import NamedTuple

from pbkv_cluster.core.usage import Tier

PACKED_BYTES = 5  # of a packed residency
_BITS = {Tier.GPU: 1, Tier.HOST: 2, Tier.DISK: 4}  # the tiers that a worker has itself
_WIDTH = 3  # of these bits
_SHELTERED = 1 << _WIDTH

ON_GPU = _BITS[Tier.GPU]
IN_HOST = _BITS[Tier.HOST]
IN_MEMORY = ON_GPU | IN_HOST  # not only on the disk
SHARED = _BITS[Tier.HOST] | _BITS[Tier.DISK]  # tiers that other processes can read
_SETS = [frozenset(tier for tier, bit in _BITS.items() if bits & bit) for bits in range(1 << _WIDTH)]


class Residency(NamedTuple):
    """The tiers of a worker that hold a block, and where other processes can read it."""

    tiers: frozenset[Tier]
    # In the fastest of them after the GPU, which nobody else can read. -1: only the GPU holds it, or it is on its way there.
    slot: int = -1
    sheltered: bool = False  # for another worker: it is the first to leave, so nobody should rely on it

    def pack(self) -> int:
        """The same as a number: a bit for each tier, one if it is sheltered, and the slot. 0 if no tier holds the block."""
        if not self.tiers:
            return 0
        return sum(_BITS.get(tier, 0) for tier in self.tiers) | _SHELTERED * self.sheltered | (self.slot + 1) << _WIDTH + 1


NOWHERE = Residency(frozenset())


def unpack(packed: int) -> Residency:
    """The residency that `Residency.pack` has packed."""
    return Residency(_SETS[packed & _SHELTERED - 1], (packed >> _WIDTH + 1) - 1, bool(packed & _SHELTERED))


def is_readable(packed: int) -> bool:
    """Whether other processes can read a block, of a packed residency."""
    return packed >> _WIDTH + 1 > 0
