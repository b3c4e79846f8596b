"""The last decisions of a cache about its blocks, so that an operator can ask why one was kept, fetched or evicted."""

from collections import deque
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import NamedTuple

from pbkv_cluster.cache.eviction import Rank
from pbkv_cluster.cache.tree.node import Node
from pbkv_cluster.core.blocks import KEY_BYTES
from pbkv_cluster.core.clock import Clock

WORKFLOWS = 4  # that a decision names, at most
_ENTRY_BYTES = 400  # of a decision besides its keys: a tuple, two numbers, the keys' object and the workflows


class Decision(NamedTuple):
    """One decision about blocks of one run."""

    at: float  # seconds, on the cache's clock
    reason: str  # code, as in `Tiers.decisions`
    keys: bytes  # of the blocks, KEY_BYTES each, in order
    value: float | None  # by which it was taken, on the policy's scale, or the time of the last use; None: not by a value
    by_lru: bool  # the tier evicted by LRU
    workflows: tuple[str, ...]  # active ones that had used the blocks, at most WORKFLOWS

    @property
    def blocks(self) -> int:
        return len(self.keys) // KEY_BYTES

    def is_about(self, key: bytes) -> bool:
        """Whether the block with this key is among the blocks."""
        return next(keys_with(self.keys, key), None) is not None


class DecisionLog:
    """A ring of decisions, the oldest dropped beyond a bound. Belongs to the thread of its cache.

    Block keys are hashed for it, so a cache that has no use for keys otherwise should have a log of no bytes.
    """

    def __init__(self, clock: Clock, max_bytes: int) -> None:
        """Args:
        clock: the cache's.
        max_bytes: of all decisions together, about; 0: none is kept.
        """
        self._clock = clock
        self._max_bytes = max_bytes
        self._decisions: deque[Decision] = deque()
        self.size_bytes = 0

    def note(self, reason: str, node: Node, blocks: Sequence[int], rank: Rank | None = None, by_lru: bool = False) -> None:
        """A decision about some blocks of a node, which must still have its owners.

        Args:
            reason: code.
            node: that has the blocks.
            blocks: indices, rising.
            rank: by which it was taken; None: not by a rank.
            by_lru: whether that is the rank of LRU.
        """
        if not self._max_bytes or not blocks:
            return
        first, last = blocks[0], blocks[-1]
        node.key(last)  # hashed now, if it has not been
        if last - first == len(blocks) - 1:
            keys = node.keys[first * KEY_BYTES : (last + 1) * KEY_BYTES]
        else:
            keys = b"".join(map(node.key, blocks))
        workflows = tuple([owner.id for owner in islice(node.owners, WORKFLOWS)]) if node.owners else ()
        self._add(Decision(self._clock.now(), reason, keys, None if rank is None else rank.value, by_lru, workflows))

    def note_keys(self, reason: str, keys: Sequence[bytes]) -> None:
        """A decision about blocks that the cache does not hold."""
        if self._max_bytes and keys:
            self._add(Decision(self._clock.now(), reason, b"".join(keys), None, False, ()))

    def latest_first(self) -> list[Decision]:
        """All decisions that are kept: a copy, which another thread may search."""
        return list(reversed(self._decisions))

    def _add(self, decision: Decision) -> None:
        decisions = self._decisions
        decisions.append(decision)
        self.size_bytes += _ENTRY_BYTES + len(decision.keys)
        while self.size_bytes > self._max_bytes:
            self.size_bytes -= _ENTRY_BYTES + len(decisions.popleft().keys)


def keys_with(keys: bytes, prefix: bytes) -> Iterator[bytes]:
    """Those of some keys, KEY_BYTES each, that begin with a prefix."""
    at = keys.find(prefix)
    while at >= 0:
        if at % KEY_BYTES == 0:
            yield keys[at : at + KEY_BYTES]
        at = keys.find(prefix, at + 1)
