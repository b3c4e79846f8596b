"""What a prompt is made of, as small numbers: which templates, instructions and earlier texts it holds.

Block keys tell how long a prompt's beginning is known; behind the first new token they tell nothing. Pieces are hashes of short
windows of tokens, each chosen by its own hash, as winnowing does (Schleimer, Wilkerson, Aiken: Winnowing, SIGMOD 2003). So equal texts
give equal pieces wherever they stand, and a long prompt gives no more of them than an event can carry.
"""

import numpy as np

from pbkv_cluster.core.tokens import as_array

WINDOW_TOKENS = 8
PIECES = 128  # of one prompt at most
_ONE_IN = 16  # windows are chosen, while a prompt is short

_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)
_WEIGHTS = tuple(np.uint64(pow(0xBF58476D1CE4E5B9, power, 1 << 64)) for power in range(1, WINDOW_TOKENS + 1))


def prompt_pieces(packed: bytes) -> tuple[int, ...]:
    """Distinct 32-bit hashes of windows of a prompt's packed tokens, in the order in which they stand first. Short prompts may have none."""
    tokens = as_array(packed).astype(np.uint64)
    windows = len(tokens) - WINDOW_TOKENS + 1
    if windows < 1:
        return ()
    mixed = (tokens + np.uint64(1)) * _MULTIPLIER
    mixed ^= mixed >> np.uint64(29)
    sums = np.zeros(windows, dtype=np.uint64)
    for offset, weight in enumerate(_WEIGHTS):
        sums += mixed[offset : offset + windows] * weight
    sums ^= sums >> np.uint64(32)
    sums *= _MULTIPLIER
    hashes = (sums >> np.uint64(32)).astype(np.uint32)
    chosen = hashes[hashes < np.uint32((1 << 32) // _ONE_IN)]
    found, first = np.unique(chosen, return_index=True)
    if len(found) > PIECES:  # the smallest: another prompt with the same text chooses the same
        first = first[:PIECES]
    return tuple(chosen[np.sort(first)].tolist())
