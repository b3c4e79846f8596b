"""What other processes hold: blocks that this worker may fetch instead of computing them."""

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Protocol

from pbkv_cluster.core.usage import Tier


class Elsewhere(Protocol):
    """Knows, without asking anybody, where blocks lie that are not in this cache. It may be wrong: a fetch can fail."""

    decisions: Counter[str]  # blocks that could not be fetched, by reason

    def tiers(self, keys: Iterable[bytes]) -> Sequence[Tier]:
        """The kind of memory that each of a sequence's next blocks can be fetched from, up to the first that cannot be.

        Args:
            keys: of the blocks; no more of them are asked for than needed.
        """
        ...

    def is_near(self, key: bytes) -> bool:
        """Whether another worker of this node keeps a block in host memory, so that this one need not keep it there, too."""
        ...


class Nowhere:
    """There are no others."""

    def __init__(self) -> None:
        self.decisions = Counter[str]()

    def tiers(self, keys: Iterable[bytes]) -> Sequence[Tier]:
        return ()

    def is_near(self, key: bytes) -> bool:
        return False


NOWHERE = Nowhere()
