"""Running sequences for which blocks are still being loaded: which of them may compute already, and whether that counts."""

import math
from collections import Counter
from collections.abc import Callable, Iterable

from pbkv_cluster.cache.cache import KVCache
from pbkv_cluster.gpu_worker.engine.sequence import Chunk, Sequence


class Loads:
    """A sequence computes when its blocks have arrived.

    If they come layer by layer, it may begin before that: in a batch that takes longer than they do, which hides the load; or
    in one that would be empty without it, with others whose loads end no later. Elsewhere it would keep the other sequences of
    the batch waiting.
    """

    def __init__(self, cache: KVCache, batch_seconds: Callable[[int], float], decisions: Counter[str]) -> None:
        """Args:
        cache: that the sequences are open in.
        batch_seconds: how long a batch of so many tokens takes at least.
        decisions: by reason code; those made here are added.
        """
        self._cache = cache
        self._batch_seconds = batch_seconds
        self._decisions = decisions

    def have_arrived(self, sequence: Sequence) -> bool:
        """Whether everything that was loaded for a running sequence is there."""
        assert sequence.handle is not None
        return self._cache.is_ready(sequence.handle)

    def soonest(self, late: Iterable[Sequence]) -> float:
        """How long a batch has to wait for layers that takes one of these sequences: seconds; infinite if that is not known."""
        handles = [sequence.handle for sequence in late if sequence.handle is not None]
        left = [self._cache.seconds_left(handle) for handle in handles]
        return min((each for each in left if each is not None), default=math.inf)

    def allow(self, sequence: Sequence, tokens: int, stall: float = 0.0) -> bool:
        """Whether a running sequence may be in a batch.

        Args:
            sequence: that wants to be.
            tokens: of the batch, with those of the sequence.
            stall: seconds for which the batch may have to wait for layers.
        """
        if self.have_arrived(sequence):
            return True
        assert sequence.handle is not None
        left = self._cache.seconds_left(sequence.handle)
        if left is None or left > max(stall, self._batch_seconds(tokens)):
            return False
        self._decisions["begin_before_loaded" if stall else "begin_hides_load"] += 1
        return True

    def settle(self, chunk: Chunk) -> bool:
        """Called when a chunk has been computed: whether that counts, or was computed on blocks that are damaged."""
        assert chunk.sequence.handle is not None
        self._cache.wait(chunk.sequence.handle)
        if self.have_arrived(chunk.sequence):
            return True
        self._decisions["discard_load_failed"] += 1
        return False
