"""A situation as sparse features for a linear model: hashes of what it holds, in groups.

Hashing takes the place of a vocabulary (Weinberger et al.: Feature hashing for large scale multitask learning, ICML 2009).
However many features a group has, together they weigh as much as one: each has the value weight / √(size of the group).
"""

import math
from collections.abc import Sequence
from zlib import crc32

import numpy as np
import numpy.typing as npt

from pbkv_cluster.predictor_service.compiled import compiled
from pbkv_cluster.predictor_service.experts.base import Floats
from pbkv_cluster.predictor_service.situation import Situation, hashes_of_agents

HASHES = 1 << 16

_DEPTHS = (1, 2, 3, 4, 5, 6, 8, 12)
_EDGE = 3  # words at either end of a text whose place counts
_MOST = 255  # features of a group
_GROUPS = 11
_EXACT = 48  # tokens of an output, below which their very number counts

# Prompts and tasks hold much that means nothing for what comes next.
_WEIGHTS = np.array((1, 1, 1, 1, 0.5, 1, 1, 1, 0.5, 1, 1), dtype=np.float32)

VALUES: Floats = (1.0 / np.sqrt(np.maximum(np.arange(_MOST + 1), 1)))[:, None].astype(np.float32) * _WEIGHTS
"""Of a feature, by the size of its group and by its group."""

_SALTS = np.array([crc32(b"group %d" % number) for number in range(2 * _GROUPS)], dtype=np.uint32).reshape(2, _GROUPS)
_PLACES = np.array([crc32(b"place %d" % number) for number in range(2 * _EDGE)], dtype=np.uint32)
_NEXT = np.uint32(0x9E3779B1)
_MIX_1, _MIX_2 = np.uint32(0x7FEB352D), np.uint32(0x846CA68B)  # lowbias32 (C. Wellons, Prospecting for hash functions, 2018)
_HALF, _ODD = np.uint32(16), np.uint32(15)

Numbers = npt.NDArray[np.uint32]


def record_of(situation: Situation) -> bytes:
    """The features of a situation, as a record for `SoftmaxTable`: some hundred bytes, kept until it has been learnt from.

    Those before the output of a step and those behind it have nothing in common.
    """
    history = hashes_of_agents(situation.agents)
    latest = history[0] if history else 0
    pair = history[1] if len(history) > 1 else latest
    depths = [history[depth - 1] for depth in _DEPTHS if depth <= len(history)]
    if len(history) < _DEPTHS[-1]:
        depths.append(crc32(b"\1", history[-1] if history else 0))  # the whole way from the start
    site = situation.site.encode()
    few = [
        0,
        *depths,
        crc32(b"step %d" % situation.step, latest),
        crc32(b"count %d" % situation.count, latest),
        crc32(b"run %d" % situation.run, latest),
        crc32(site, latest),
        crc32(site, pair),
    ]
    finished = situation.finished
    tokens = [crc32(b"prompt %d" % _size(situation.prompt_tokens), pair)]
    if situation.output_tokens:
        tokens.append(crc32(b"output %d" % _size(situation.output_tokens), pair))
        if finished and situation.output_tokens < _EXACT:
            tokens.append(crc32(b"exactly %d" % situation.output_tokens, latest))
    pieces, words, task = map(_numbers, (situation.pieces, situation.words, situation.task))
    most = _GROUPS + len(few) + len(pieces) + 3 * len(words) + 2 * _EDGE + len(task) + len(tokens)
    record = np.empty(most, dtype=np.uint16)
    words_of = pair if finished else 0
    end = _fill(_numbers(few), pieces, words, task, _numbers(tokens), latest, words_of, _SALTS[int(finished)], record)
    return record[:end].tobytes()


def _size(tokens: int) -> int:
    """In half powers of two."""
    return round(2.0 * math.log2(tokens + 1))


def split(records: npt.NDArray[np.uint16]) -> list[bytes]:
    """Records that lie one behind the other.

    Raises:
        ValueError: there are other things among them.
    """
    found, at = [], 0
    while at < len(records):
        sizes = records[at : at + _GROUPS]
        end = at + _GROUPS + int(sizes.sum())
        if len(sizes) < _GROUPS or sizes.max() > _MOST or end > len(records):
            raise ValueError("records of lessons do not fit")
        found.append(records[at:end].tobytes())
        at = end
    return found


def _numbers(sequence: Sequence[int]) -> Numbers:
    return np.array(sequence, dtype=np.uint32)


@compiled
def _fill(
    few: Numbers,
    pieces: Numbers,
    words: Numbers,
    task: Numbers,
    tokens: Numbers,
    latest: int,
    words_of: int,
    salts: Numbers,
    record: npt.NDArray[np.uint16],
) -> int:
    """Writes a record. Returns its length."""
    own = np.uint32(latest | 1)  # odd: a product with it can be undone
    seen = np.empty(_MOST, np.uint32)
    record[0], record[1], record[2], record[3] = 1, len(few) - 6, 3, 2
    at, group = _GROUPS, 0
    until = 1
    for number in range(len(few)):
        if number == until:
            group += 1
            until += record[group]
        record[at] = _mixed(few[number] + salts[group])
        at += 1
    record[4] = min(len(pieces), _MOST)
    for number in range(record[4]):
        record[at] = _mixed(pieces[number] * own + salts[4])
        at += 1
    record[5] = _distinct(words, seen)
    for number in range(record[5]):
        record[at] = _mixed(seen[number] * own + salts[5])
        at += 1
    record[6] = max(0, min(len(words) - 1, _MOST))
    for number in range(record[6]):
        record[at] = _mixed(words[number] * _NEXT + words[number + 1] + salts[6])
        at += 1
    edge = min(_EDGE, len(words))
    record[7] = 2 * edge
    for number in range(edge):
        record[at] = _mixed(words[number] * own + _PLACES[number] + salts[7])
        record[at + 1] = _mixed(words[len(words) - 1 - number] * own + _PLACES[2 * _EDGE - 1 - number] + salts[7])
        at += 2
    record[8] = _distinct(task, seen)
    for number in range(record[8]):
        record[at] = _mixed(seen[number] + salts[8])
        at += 1
    record[9] = len(tokens)
    for number in range(record[9]):
        record[at] = _mixed(tokens[number] + salts[9])
        at += 1
    record[10] = 0
    if words_of:
        both = np.uint32(words_of | 1)
        record[10] = _distinct(words, seen)
        for number in range(record[10]):
            record[at] = _mixed(seen[number] * both + salts[10])
            at += 1
    return at


@compiled
def _mixed(number: int) -> np.uint32:
    mixed = np.uint32(number)
    mixed ^= mixed >> _HALF
    mixed = np.uint32(mixed * _MIX_1)
    mixed ^= mixed >> _ODD
    mixed = np.uint32(mixed * _MIX_2)
    return mixed >> _HALF


@compiled
def _distinct(numbers: Numbers, seen: Numbers) -> int:
    """Collects each of the numbers once, as far as there is room. Returns how many these are."""
    found = 0
    for number in numbers:
        for at in range(found):
            if seen[at] == number:
                break
        else:
            if found == len(seen):
                break
            seen[found] = number
            found += 1
    return found
