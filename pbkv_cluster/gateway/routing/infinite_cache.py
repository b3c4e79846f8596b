"""An infinite cache: it counts the *available* tokens of a prompt, the bound for every real cache (`core.usage`).

Only block keys are kept, not blocks. A key depends on the tenant, so equal tokens of two tenants never match.
"""

from collections import deque
from collections.abc import Iterable, Sequence

from pbkv_cluster.core.tokens import BLOCK_TOKENS


class InfiniteCache:
    """Keys of the blocks that a cache without eviction would have. Bounded: beyond its capacity it forgets the oldest first."""

    def __init__(self, capacity_blocks: int) -> None:
        """Args:
        capacity_blocks: keys remembered; 0 remembers nothing.
        """
        self._capacity = capacity_blocks
        self._keys: set[bytes] = set()
        # The order is kept in a deque, as taking the first entry of a dict again and again scans over the removed ones.
        self._order: deque[bytes] = deque()

    def __len__(self) -> int:
        return len(self._keys)

    def match(self, keys: Sequence[bytes], prompt_tokens: int) -> int:
        """The available tokens of a prompt.

        The last token is always computed, since its output starts the answer: only full blocks before it count.

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
