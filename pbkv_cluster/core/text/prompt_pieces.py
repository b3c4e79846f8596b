"""Pieces of a prompt: hashes that show which templates, instructions and earlier texts it contains.

Block keys show how much of a prompt's beginning is known, and nothing after its first new token. Pieces are hashes of short
windows of tokens, each selected by its own hash, as in winnowing (Schleimer, Wilkerson, Aiken: SIGMOD 2003). Equal texts
therefore have equal pieces at any position. If a prompt has more pieces than an event can carry, the smallest hashes are kept:
a sample that favours no part of the prompt.
"""

import numpy as np

from pbkv_cluster.core.tokens import as_array, count

WINDOW_TOKENS = 8  # a power of two
PIECES = 128  # most of one prompt
_ONE_IN = 16  # windows are selected, if a prompt is short

_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)
_BASE = 0xBF58476D1CE4E5B9
# In the sum over a window, token k has the weight base^(k + 1). Sums over 1, 2, 4, ... tokens follow from one another, so that
# three passes suffice for eight tokens.
_SHIFTS = tuple((1 << power, np.uint64(pow(_BASE, 1 << power, 1 << 64))) for power in range(WINDOW_TOKENS.bit_length() - 1))


def prompt_pieces(packed: bytes) -> tuple[int, ...]:
    """Distinct 32-bit hashes of windows of a prompt's packed tokens, by first position. O(tokens).

    A short prompt may have none.

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
    first = first[:PIECES]  # the smallest hashes: another prompt with the same text selects the same
    first.sort()
    return tuple(chosen[first].tolist())
