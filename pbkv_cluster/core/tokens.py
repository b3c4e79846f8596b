"""Packed token ids: little-endian int32, four bytes for each token.

Packed tokens are compared, sliced and hashed at memory speed; converting from a list of Python ints costs 25 ns a token.
"""

from collections.abc import Iterable, Sequence

import numpy as np

from pbkv_cluster.core.errors import InvalidArgument

TOKEN_BYTES = 4
BLOCK_TOKENS = 16
BLOCK_BYTES = BLOCK_TOKENS * TOKEN_BYTES

_DTYPE = np.dtype("<i4")


def pack(ids: Iterable[int]) -> bytes:
    """Packs token ids.

    Raises:
        OverflowError: an id does not fit in 32 bits.
    """
    return np.array(ids if isinstance(ids, Sequence) else list(ids), dtype=_DTYPE).tobytes()


def unpack(packed: bytes) -> list[int]:
    """The token ids of `packed`.

    Raises:
        ValueError: the length is not a multiple of four bytes.
    """
    ids: list[int] = as_array(packed).tolist()
    return ids


def as_array(packed: bytes) -> np.ndarray[tuple[int], np.dtype[np.int32]]:
    """A read-only int32 view of `packed`, without a copy.

    Raises:
        ValueError: the length is not a multiple of four bytes.
    """
    return np.frombuffer(packed, dtype=_DTYPE)


def count(packed: bytes) -> int:
    """Number of tokens in `packed`."""
    return len(packed) // TOKEN_BYTES


def check_ids(field: str, packed: bytes, vocab_size: int) -> None:
    """Checks that packed ids are in the vocabulary.

    Raises:
        InvalidArgument: an id is outside the vocabulary; the error names `field`.
        ValueError: the length is not a multiple of four bytes.
    """
    ids = as_array(packed)
    outside = (ids < 0) | (ids >= vocab_size)
    if outside.any():
        position = int(outside.argmax())
        raise InvalidArgument(field, f"id {ids[position]} at position {position} is outside the vocabulary [0, {vocab_size})")


def full_blocks(tokens: int) -> int:
    """Number of blocks that `tokens` tokens fill completely."""
    return tokens // BLOCK_TOKENS


def blocks_for(tokens: int) -> int:
    """Number of blocks that `tokens` tokens need; the last may be partly filled."""
    return -(-tokens // BLOCK_TOKENS)


def common_blocks(first: bytes, tokens: bytes, at: int, end: int) -> int:
    """Number of leading blocks that `first` and `tokens[at:end]` share, by bisection on slices.

    The first block must be the same in both: it is not compared.
    """
    low, high = 1, min(len(first), end - at) // BLOCK_BYTES + 1
    while high - low > 1:
        middle = (low + high) // 2
        if tokens.startswith(first[: middle * BLOCK_BYTES], at):
            low = middle
        else:
            high = middle
    return low
