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
from pbkv_cluster.predictor_service.workflow.situation import Situation, hashes_of_latest

HASHES = 1 << 16

_DEPTHS = (1, 2, 3, 4, 5, 6, 8, 12)
_EDGE = 3  # words at either end of a text whose place counts
_EXACT_OUTPUT = 48  # tokens, below which their very number counts
_EXACT_GROWTH = 256  # of a prompt
_MOST = 255  # features of a group
# The first of a prompt's pieces, and of a task's words: those that follow make forecasts dearer, and no better.
_MOST_PIECES = 16
_MOST_TASK_WORDS = 16

# Groups, in order, and their weights: a prompt holds much that means nothing for what comes next, an output much that does.
_SMALL = {
    "always": 1.0,
    "agents": 1.0,
    "counters": 1.0,
    "site": 1.0,
    "sites": 1.0,
    "lengths": 1.0,
    "growth": 0.7,
    "whole task": 1.0,
}
_LARGE = {
    "pieces": 0.5,
    "task": 0.5,
    "earlier words": 0.5,
    "words": 1.4,
    "pairs of words": 1.4,
    "first and last words": 1.4,
    "words behind two agents": 1.4,
}
_WEIGHTS = np.array([*_SMALL.values(), *_LARGE.values()], dtype=np.float32)
_GROUPS = len(_WEIGHTS)
_PIECES = len(_SMALL)  # the first large group

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
    history = hashes_of_latest(situation.agents)
    latest = history[0] if history else 0
    pair = history[1] if len(history) > 1 else latest
    pieces, task = _numbers(situation.pieces[:_MOST_PIECES]), _numbers(situation.task)
    earlier, words = _numbers(situation.earlier), _numbers(situation.words)
    small = (
        (0,),
        _depths(history),
        _counters(situation, latest),
        *_sites(situation.sites, latest, pair),
        _lengths(situation, latest, pair),
        _growth(situation, latest, pair),
        _whole(task, situation.step, latest, pair),
    )
    few = _numbers([number for group in small for number in group])
    sizes = np.array([len(group) for group in small], dtype=np.uint16)
    record = np.empty(_GROUPS + len(few) + len(pieces) + len(task) + len(earlier) + 3 * len(words) + 2 * _EDGE, dtype=np.uint16)
    behind_two = pair if situation.finished else 0
    end = _fill(
        few, sizes, pieces, task[:_MOST_TASK_WORDS], earlier, words, latest, behind_two, _SALTS[int(situation.finished)], record
    )
    return record[:end].tobytes()


def _depths(history: tuple[int, ...]) -> Sequence[int]:
    found = [history[depth - 1] for depth in _DEPTHS if depth <= len(history)]
    if len(history) < _DEPTHS[-1]:
        found.append(crc32(b"\1", history[-1] if history else 0))  # the whole way from the start
    return found


def _counters(situation: Situation, latest: int) -> Sequence[int]:
    return (
        crc32(b"step %d" % situation.step, latest),
        crc32(b"count %d" % situation.count, latest),
        crc32(b"run %d" % situation.run, latest),
    )


def _sites(sites: tuple[str, ...], latest: int, pair: int) -> tuple[Sequence[int], Sequence[int]]:
    site = sites[-1].encode() if sites else b""
    named = hashes_of_latest(sites) if any(sites) else ()
    return (crc32(site, latest), crc32(site, pair)), [crc32(b"sites %d" % code, latest) for code in named]


def _lengths(situation: Situation, latest: int, pair: int) -> Sequence[int]:
    """Of prompt and output; a short output's exactly."""
    output = situation.output_tokens
    behind = pair if situation.finished else latest
    found = [crc32(b"prompt %d" % round(_halves(situation.prompt_tokens)), behind)]
    if output:
        found.append(crc32(b"output %d" % round(_halves(output)), behind))
        if situation.finished and output < _EXACT_OUTPUT:
            found.append(crc32(b"exactly %d" % output, latest))
    return found


def _growth(situation: Situation, latest: int, pair: int) -> Sequence[int]:
    """By how much the prompt has grown, while that is the latest news: since the step before, and since the agent's own last.

    What it has got since then beside that step's output says what others have told the agent.
    """
    if situation.finished:
        return ()
    found, prompt = list[int](), situation.prompt_tokens
    if situation.former_prompt_tokens:
        found.append(crc32(b"growth %d" % _thirds(prompt - situation.former_prompt_tokens), pair))
    if situation.own_prompt_tokens:
        grown = prompt - situation.own_prompt_tokens
        told = grown - situation.own_output_tokens
        found.append(crc32(b"since its last %d" % _thirds(grown), latest))
        found.append(crc32(b"since its last %d" % _thirds(grown), pair))
        found.append(crc32(b"told %d" % _thirds(told), latest))
        if abs(told) < _EXACT_GROWTH:
            found.append(crc32(b"told exactly %d" % told, latest))
    return found


def _thirds(tokens: int) -> int:
    """A difference, in thirds of powers of two."""
    return round(math.copysign(3.0 * math.log2(abs(tokens) + 1), tokens))


def _halves(tokens: int) -> float:
    """In half powers of two."""
    return 2.0 * math.log2(tokens + 1)


def _whole(task: Numbers, step: int, latest: int, pair: int) -> Sequence[int]:
    """Of a task as a whole, which may be solved more than once."""
    if not len(task):
        return ()
    text = task.tobytes()
    behind = crc32(text, latest)
    return behind, crc32(text, pair), crc32(b"step %d" % step, behind)


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
    sizes: npt.NDArray[np.uint16],
    pieces: Numbers,
    task: Numbers,
    earlier: Numbers,
    words: Numbers,
    latest: int,
    behind_two: int,
    salts: Numbers,
    record: npt.NDArray[np.uint16],
) -> int:
    """Writes a record: `few` of the small groups, `sizes` of them, and then the large ones. Returns its length."""
    at, number = _GROUPS, 0
    for group in range(len(sizes)):
        record[group] = sizes[group]
        for _ in range(sizes[group]):
            record[at] = _mixed(few[number] + salts[group])
            at += 1
            number += 1
    own, both = np.uint32(latest | 1), np.uint32(behind_two | 1)  # odd: a product with it can be undone
    seen = np.empty(_MOST, np.uint32)
    group = _PIECES
    record[group] = len(pieces)
    for number in range(record[group]):
        record[at] = _mixed(pieces[number] * own + salts[group])
        at += 1
    group += 1
    record[group] = _distinct(task, seen)
    for number in range(record[group]):
        record[at] = _mixed(seen[number] + salts[group])
        at += 1
    group += 1
    record[group] = _distinct(earlier, seen)
    for number in range(record[group]):
        record[at] = _mixed(seen[number] * own + salts[group])
        at += 1
    group += 1
    distinct = _distinct(words, seen)
    record[group] = distinct
    for number in range(distinct):
        record[at] = _mixed(seen[number] * own + salts[group])
        at += 1
    group += 1
    record[group] = max(0, min(len(words) - 1, _MOST))
    for number in range(record[group]):
        record[at] = _mixed(words[number] * _NEXT + words[number + 1] + salts[group])
        at += 1
    group += 1
    edge = min(_EDGE, len(words))
    record[group] = 2 * edge
    for number in range(edge):
        record[at] = _mixed(words[number] * own + _PLACES[number] + salts[group])
        record[at + 1] = _mixed(words[len(words) - 1 - number] * own + _PLACES[2 * _EDGE - 1 - number] + salts[group])
        at += 2
    group += 1
    record[group] = distinct if behind_two else 0
    for number in range(record[group]):
        record[at] = _mixed(seen[number] * both + salts[group])
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
