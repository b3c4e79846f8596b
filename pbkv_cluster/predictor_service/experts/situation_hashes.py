"""A situation as sparse features for a linear model: hashes of what it holds, in groups.

Hashing takes the place of a vocabulary (Weinberger et al.: Feature hashing for large scale multitask learning, ICML 2009).
However many features a group has, together they weigh as much as one: each has the value weight / √(size of the group).
"""

from typing import NamedTuple
from zlib import crc32

import numpy as np
import numpy.typing as npt

from pbkv_cluster.predictor_service.experts.base import Floats
from pbkv_cluster.predictor_service.situation import Situation

HASHES = 1 << 16

_DEPTHS = frozenset((1, 2, 3, 4, 5, 6, 8, 12))
_EDGE = 3  # words at either end of a text whose place counts
_MOST = 255  # features of a group
_GROUPS = 9

# Prompts and tasks hold much that means nothing for what comes next.
_WEIGHTS = np.array((1, 1, 1, 1, 0.5, 1, 1, 1, 0.5), dtype=np.float32)
_VALUES = (1.0 / np.sqrt(np.maximum(np.arange(_MOST + 1), 1))).astype(np.float32)  # by the size of the group

_SALTS = np.array([crc32(b"group %d" % number) for number in range(2 * _GROUPS)], dtype=np.uint32).reshape(2, _GROUPS)
_PLACES = np.array([crc32(b"place %d" % number) for number in range(2 * _EDGE)], dtype=np.uint32)
_NEXT = np.uint32(0x9E3779B1)
_MIX_1, _MIX_2 = np.uint32(0x7FEB352D), np.uint32(0x846CA68B)  # lowbias32 (C. Wellons, Prospecting for hash functions, 2018)
_FIRST = np.array([True])
_HALF, _ODD = np.uint32(16), np.uint32(15)


class Hashes(NamedTuple):
    """Packed: some hundred bytes, kept for every situation that waits to be learnt from."""

    rows: bytes  # uint16, group by group
    sizes: bytes  # of the groups, uint8


def hashes_of(situation: Situation) -> Hashes:
    """The features of a situation. Those before the output of a step and those behind it have nothing in common."""
    history, latest, pair = _history(situation.agents)
    site = situation.site.encode()
    few = [
        0,
        *history,
        crc32(b"step %d" % situation.step, latest),
        crc32(b"count %d" % situation.count, latest),
        crc32(b"run %d" % situation.run, latest),
        crc32(site, latest),
        crc32(site, pair),
    ]
    own = np.uint32(latest | 1)  # odd: a product with it can be undone
    words = np.array(situation.words, dtype=np.uint32)
    edge = min(_EDGE, len(words))
    groups = [
        np.array(few, dtype=np.uint32),
        np.array(situation.pieces, dtype=np.uint32)[:_MOST] * own,
        _distinct(words)[:_MOST] * own,
        words[: _MOST + 1][:-1] * _NEXT + words[1 : _MOST + 1],
        words[:edge] * own + _PLACES[:edge],
        words[len(words) - edge :] * own + _PLACES[2 * _EDGE - edge :],
        _distinct(np.array(situation.task, dtype=np.uint32))[:_MOST],
    ]
    _, pieces, distinct, pairs, _, _, task = map(len, groups)
    sizes = (1, len(history), 3, 2, pieces, distinct, pairs, 2 * edge, task)
    numbers = np.concatenate(groups)
    numbers += _SALTS[int(situation.finished)].repeat(sizes)
    numbers ^= numbers >> _HALF
    numbers *= _MIX_1
    numbers ^= numbers >> _ODD
    numbers *= _MIX_2
    return Hashes((numbers >> _HALF).astype(np.uint16).tobytes(), bytes(sizes))


def _distinct(numbers: npt.NDArray[np.uint32]) -> npt.NDArray[np.uint32]:
    """Each of the numbers once."""
    ordered = np.sort(numbers)
    if len(ordered) > 1:
        ordered = ordered[np.concatenate((_FIRST, ordered[1:] != ordered[:-1]))]
    return ordered


def values_of(sizes: npt.NDArray[np.uint8]) -> Floats:
    """The values of features, by the sizes of their groups; the last axis is that of the groups."""
    values: Floats = (_VALUES.take(sizes) * _WEIGHTS).ravel().repeat(sizes.ravel())
    return values


def _history(agents: tuple[str, ...]) -> tuple[list[int], int, int]:
    """Hashes of the latest agents: all of them, that of the last one, and that of the last two."""
    text, found = b"", []
    for depth, label in enumerate(reversed(agents), start=1):
        text += label.encode() + b"\0"
        if depth in _DEPTHS:
            found.append(crc32(text))
    latest = found[0] if found else 0
    pair = found[1] if len(agents) > 1 else latest
    if len(agents) < max(_DEPTHS):
        found.append(crc32(text + b"\1"))  # the whole way from the start
    return found, latest, pair
