"""What an infinite cache would have had: the denominator that every real cache is measured against (`core.usage`).

Only block keys are kept, not blocks. Keys hold the tenant's salt, so equal tokens of two tenants never meet.
"""

from collections import deque
from collections.abc import Iterable, Sequence

from pbkv_cluster.core.tokens import BLOCK_TOKENS


class InfiniteCache:
    """The blocks that a cache without eviction would hold, up to a bound; beyond it the oldest are forgotten first."""

    def __init__(self, capacity_blocks: int) -> None:
        """Args:
        capacity_blocks: keys remembered; 0 remembers nothing.
        """
        self._capacity = capacity_blocks
        self._keys: set[bytes] = set()
        # A deque beside a set, because taking the first entry of a dict again and again scans over the removed ones.
        self._order: deque[bytes] = deque()

    def __len__(self) -> int:
        return len(self._keys)

    def match(self, keys: Sequence[bytes], prompt_tokens: int) -> int:
        """Tokens of a prompt that the cache would give.

        The last token is always computed, since its output starts the answer: at most the full blocks before it count.

        Args:
            keys: of the prompt's full blocks, first to last.
            prompt_tokens: of the whole prompt.
        """
        limit = min(len(keys), max(prompt_tokens - 1, 0) // BLOCK_TOKENS)
        for position in range(limit):
            if keys[position] not in self._keys:
                return position * BLOCK_TOKENS
        return limit * BLOCK_TOKENS

    def remember(self, keys: Iterable[bytes]) -> None:
        """Adds blocks that have been computed."""
        for key in keys:
            if key not in self._keys:
                self._keys.add(key)
                self._order.append(key)
        while len(self._order) > self._capacity:
            self._keys.discard(self._order.popleft())
