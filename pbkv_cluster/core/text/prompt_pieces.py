"""What a prompt is made of, as small numbers: which templates, instructions and earlier texts it holds.

Block keys tell how long a prompt's beginning is known; behind the first new token they tell nothing. Pieces are hashes of
short windows of tokens, each chosen by its own hash, as in winnowing (Schleimer, Wilkerson, Aiken: SIGMOD 2003). So equal
texts give equal pieces wherever they stand, and a long prompt gives no more of them than an event can carry: where it has
more, the smallest are kept, a sample that leans to no part of it.
"""

import numpy as np

from pbkv_cluster.core.tokens import as_array, count

WINDOW_TOKENS = 8  # a power of two
PIECES = 128  # of one prompt at most
_ONE_IN = 16  # windows are chosen, while a prompt is short

_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)
_BASE = 0xBF58476D1CE4E5B9
# A window's sum has weight base^(k + 1) for its token k. Sums over 1, 2, 4, ... tokens double from one to the next, so that
# three passes do for eight tokens.
_SHIFTS = tuple((1 << power, np.uint64(pow(_BASE, 1 << power, 1 << 64))) for power in range(WINDOW_TOKENS.bit_length() - 1))


def prompt_pieces(packed: bytes) -> tuple[int, ...]:
    """Distinct 32-bit hashes of windows of a prompt's packed tokens, in the order in which they stand first.

    A short prompt may have none. O(tokens).

    Raises:
        ValueError: the length is not a multiple of four bytes.
    """
    if count(packed) < WINDOW_TOKENS:
        return ()
    sums = as_array(packed).astype(np.uint64)
    sums += np.uint64(1)
    sums *= _MULTIPLIER
    sums ^= sums >> np.uint64(29)
    sums *= np.uint64(_BASE)
    for shift, weight in _SHIFTS:
        longer = sums[shift:] * weight
        longer += sums[:-shift]
        sums = longer
    sums ^= sums >> np.uint64(32)
    sums *= _MULTIPLIER
    sums >>= np.uint64(32)
    hashes = sums.astype(np.uint32)
    chosen = hashes[hashes < np.uint32((1 << 32) // _ONE_IN)]
    _, first = np.unique(chosen, return_index=True)
    first = first[:PIECES]  # the smallest: another prompt with the same text chooses the same
    first.sort()
    return tuple(chosen[first].tolist())
