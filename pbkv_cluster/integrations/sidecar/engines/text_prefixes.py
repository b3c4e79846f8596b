"""Beginnings of texts that one engine has had, in pieces of 64 bytes: an estimate of what it holds, for want of tokens.

Engines evict what was used least recently, and so does this: how much, the engine's KV events tell, or an answer that has found
less in the cache than was expected.
"""

from collections import OrderedDict
from collections.abc import Sequence

from pbkv_cluster.core.ewma import Ewma

PIECE_TOKENS = 16  # of a piece of 64 bytes, as long as nothing was measured: four bytes a token
BYTES_A_PIECE = 200  # of a key and its entry, measured with CPython 3.11
_WEIGHT = 0.05


class TextPrefixes:
    """Keys of pieces, those used least recently first, and a piece before those that it goes on from. Bounded in bytes."""

    def __init__(self, max_bytes: int) -> None:
        """`max_bytes`: of memory."""
        self._max = max_bytes // BYTES_A_PIECE
        self._pieces: OrderedDict[bytes, None] = OrderedDict()
        self._tokens = Ewma(_WEIGHT, PIECE_TOKENS)

    def __len__(self) -> int:
        return len(self._pieces)

    @property
    def piece_tokens(self) -> float:
        """Tokens of a piece, as measured."""
        return self._tokens.value

    def measure(self, pieces: int, tokens: int) -> None:
        """A text of so many pieces was one of so many tokens."""
        if pieces >= 4 and tokens:  # shorter ones say more of the chat template than of the text
            self._tokens.add(tokens / pieces)

    def match(self, keys: Sequence[bytes]) -> int:
        """Tokens of the leading pieces of a text that the engine has had, by bisection.

        Args:
            keys: of the text's pieces; each covers all before its own.
        """
        low, high = 0, len(keys)
        while low < high:
            middle = (low + high + 1) // 2
            if keys[middle - 1] in self._pieces:
                low = middle
            else:
                high = middle - 1
        return int(low * self.piece_tokens)

    def add(self, keys: Sequence[bytes]) -> None:
        """The engine has had a text."""
        for key in reversed(keys):
            self._pieces[key] = None
            self._pieces.move_to_end(key)
        while len(self._pieces) > self._max:
            self._pieces.popitem(last=False)

    def correct(self, keys: Sequence[bytes], cached_tokens: int) -> None:
        """The engine has found so many tokens of a text: the first piece that it lacks, and all used before that, have gone."""
        found = round(cached_tokens / self.piece_tokens)
        if found >= len(keys) - 1 or keys[found + 1] not in self._pieces:  # one piece more or less says nothing
            return
        while self._pieces:
            key, _ = self._pieces.popitem(last=False)
            if key == keys[found + 1]:
                return

    def drop_share(self, share: float) -> None:
        """The engine has evicted a share, from 0 to 1, of what it held."""
        for _ in range(min(round(share * len(self._pieces)), len(self._pieces))):
            self._pieces.popitem(last=False)

    def clear(self) -> None:
        """The engine holds nothing."""
        self._pieces.clear()
