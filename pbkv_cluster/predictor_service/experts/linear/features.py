"""A situation as sparse features for a linear model: hashes of what is known, in groups.

Hashing replaces a vocabulary (Weinberger et al.: Feature hashing for large scale multitask learning, ICML 2009). A group weighs
the same however many features it has: each of them has the value weight / √(size of the group).
"""

import math
from collections.abc import Sequence
from zlib import crc32

import numpy as np
import numpy.typing as npt

from pbkv_cluster.predictor_service.experts.base import Floats
from pbkv_cluster.predictor_service.jit import jit
from pbkv_cluster.predictor_service.workflow.situation import Situation, suffix_hashes

HASHES = 1 << 16

_DEPTHS = (1, 2, 3, 4, 5, 6, 8, 12)
_EDGE = 3  # words at either end of an output that are features with their position
_EXACT_OUTPUT = 48  # tokens; the exact length of a shorter output is a feature
_EXACT_GROWTH = 256  # tokens; the same for the growth of a prompt
_MAX_GROUP = 255  # features of a group
# Only the first of a prompt's pieces and of a task's words are used: more of them make forecasts slower, and no better.
_MAX_PIECES = 16
_MAX_TASK_WORDS = 16

# Groups, in order, and their weights: much of a prompt says nothing about the next step, much of an output does.
_SMALL = {
    "always": 1.0,
    "agents": 1.0,
    "counters": 1.0,
    "call site": 1.0,
    "call sites": 1.0,
    "lengths": 1.0,
    "growth": 0.7,
    "whole task": 1.0,
}
_LARGE = {
    "pieces": 0.5,
    "task": 0.5,
    "previous words": 0.5,
    "words": 1.4,
    "pairs of words": 1.4,
    "first and last words": 1.4,
    "words after two agents": 1.4,
}
_WEIGHTS = np.array([*_SMALL.values(), *_LARGE.values()], dtype=np.float32)
_GROUPS = len(_WEIGHTS)
_FIRST_LARGE = len(_SMALL)

VALUES: Floats = (1.0 / np.sqrt(np.maximum(np.arange(_MAX_GROUP + 1), 1)))[:, None].astype(np.float32) * _WEIGHTS
"""Value of a feature, by the size of its group and by its group."""

_SALTS = np.array([crc32(b"group %d" % number) for number in range(2 * _GROUPS)], dtype=np.uint32).reshape(2, _GROUPS)
_POSITIONS = np.array([crc32(b"place %d" % number) for number in range(2 * _EDGE)], dtype=np.uint32)
_NEXT = np.uint32(0x9E3779B1)
_MIX_1, _MIX_2 = np.uint32(0x7FEB352D), np.uint32(0x846CA68B)  # lowbias32 (C. Wellons, Prospecting for hash functions, 2018)
_HALF, _ODD = np.uint32(16), np.uint32(15)

Numbers = npt.NDArray[np.uint32]


def record_of(situation: Situation) -> bytes:
    """The features of a situation, as a record for `SoftmaxTable` of some hundred bytes.

    Situations before and after the output of a step have no feature in common.
    """
    history = suffix_hashes(situation.agents)
    latest = history[0] if history else 0
    pair = history[1] if len(history) > 1 else latest
    pieces, task = _numbers(situation.pieces[:_MAX_PIECES]), _numbers(situation.task)
    previous, words = _numbers(situation.previous_words), _numbers(situation.words)
    small = (
        (0,),
        _depths(history),
        _counters(situation, latest),
        *_call_sites(situation.call_sites, latest, pair),
        _lengths(situation, latest, pair),
        _growth(situation, latest, pair),
        _whole_task(task, situation.step, latest, pair),
    )
    few = _numbers([number for group in small for number in group])
    sizes = np.array([len(group) for group in small], dtype=np.uint16)
    record = np.empty(
        _GROUPS + len(few) + len(pieces) + len(task) + len(previous) + 3 * len(words) + 2 * _EDGE, dtype=np.uint16
    )
    two_agents = pair if situation.finished else 0
    end = _fill(
        few, sizes, pieces, task[:_MAX_TASK_WORDS], previous, words, latest, two_agents, _SALTS[int(situation.finished)], record
    )
    return record[:end].tobytes()


def _depths(history: tuple[int, ...]) -> Sequence[int]:
    """The latest agents, in sequences of several lengths."""
    found = [history[depth - 1] for depth in _DEPTHS if depth <= len(history)]
    if len(history) < _DEPTHS[-1]:
        found.append(crc32(b"\1", history[-1] if history else 0))  # all steps from the start
    return found


def _counters(situation: Situation, latest: int) -> Sequence[int]:
    return (
        crc32(b"step %d" % situation.step, latest),
        crc32(b"count %d" % situation.count, latest),
        crc32(b"run %d" % situation.run, latest),
    )


def _call_sites(sites: tuple[str, ...], latest: int, pair: int) -> tuple[Sequence[int], Sequence[int]]:
    """The latest call site, and the latest ones in sequences."""
    site = sites[-1].encode() if sites else b""
    sequences = suffix_hashes(sites) if any(sites) else ()
    return (crc32(site, latest), crc32(site, pair)), [crc32(b"sites %d" % code, latest) for code in sequences]


def _lengths(situation: Situation, latest: int, pair: int) -> Sequence[int]:
    """Lengths of prompt and output; of a short output the exact one too."""
    output = situation.output_tokens
    agents = pair if situation.finished else latest
    found = [crc32(b"prompt %d" % round(_halves(situation.prompt_tokens)), agents)]
    if output:
        found.append(crc32(b"output %d" % round(_halves(output)), agents))
        if situation.finished and output < _EXACT_OUTPUT:
            found.append(crc32(b"exactly %d" % output, latest))
    return found


def _growth(situation: Situation, latest: int, pair: int) -> Sequence[int]:
    """Growth of the latest prompt since the previous step, and since the agent's own previous step; nothing after the output.

    What has been added since then, beyond that step's output, is what others have told the agent.
    """
    if situation.finished:
        return ()
    found, prompt = list[int](), situation.prompt_tokens
    if situation.previous_prompt_tokens:
        found.append(crc32(b"growth %d" % _thirds(prompt - situation.previous_prompt_tokens), pair))
    if situation.agent_prompt_tokens:
        grown = prompt - situation.agent_prompt_tokens
        added = grown - situation.agent_output_tokens
        found.append(crc32(b"since its last %d" % _thirds(grown), latest))
        found.append(crc32(b"since its last %d" % _thirds(grown), pair))
        found.append(crc32(b"told %d" % _thirds(added), latest))
        if abs(added) < _EXACT_GROWTH:
            found.append(crc32(b"told exactly %d" % added, latest))
    return found


def _thirds(tokens: int) -> int:
    """A difference on a logarithmic scale: three units for each power of two."""
    return round(math.copysign(3.0 * math.log2(abs(tokens) + 1), tokens))


def _halves(tokens: int) -> float:
    """A length on a logarithmic scale: two units for each power of two."""
    return 2.0 * math.log2(tokens + 1)


def _whole_task(task: Numbers, step: int, latest: int, pair: int) -> Sequence[int]:
    """The task as a whole, since some tasks are run more than once."""
    if not len(task):
        return ()
    text = task.tobytes()
    code = crc32(text, latest)
    return code, crc32(text, pair), crc32(b"step %d" % step, code)


def split(records: npt.NDArray[np.uint16]) -> list[bytes]:
    """The single records of several that follow one another.

    Raises:
        ValueError: they are not records.
    """
    found, at = [], 0
    while at < len(records):
        sizes = records[at : at + _GROUPS]
        end = at + _GROUPS + int(sizes.sum())
        if len(sizes) < _GROUPS or sizes.max() > _MAX_GROUP or end > len(records):
            raise ValueError("records of examples do not fit")
        found.append(records[at:end].tobytes())
        at = end
    return found


def _numbers(sequence: Sequence[int]) -> Numbers:
    return np.array(sequence, dtype=np.uint32)


@jit
def _fill(
    few: Numbers,
    sizes: npt.NDArray[np.uint16],
    pieces: Numbers,
    task: Numbers,
    previous: Numbers,
    words: Numbers,
    latest: int,
    two_agents: int,
    salts: Numbers,
    record: npt.NDArray[np.uint16],
) -> int:
    """Writes a record: the small groups, of these `sizes`, with features `few`; then the large ones. Returns its length."""
    at, number = _GROUPS, 0
    for group in range(len(sizes)):
        record[group] = sizes[group]
        for _ in range(sizes[group]):
            record[at] = _mixed(few[number] + salts[group])
            at += 1
            number += 1
    own, both = np.uint32(latest | 1), np.uint32(two_agents | 1)  # odd, so that multiplying by it loses nothing
    unique = np.empty(_MAX_GROUP, np.uint32)
    group = _FIRST_LARGE
    record[group] = len(pieces)
    for number in range(record[group]):
        record[at] = _mixed(pieces[number] * own + salts[group])
        at += 1
    group += 1
    record[group] = _distinct(task, unique)
    for number in range(record[group]):
        record[at] = _mixed(unique[number] + salts[group])
        at += 1
    group += 1
    record[group] = _distinct(previous, unique)
    for number in range(record[group]):
        record[at] = _mixed(unique[number] * own + salts[group])
        at += 1
    group += 1
    distinct = _distinct(words, unique)
    record[group] = distinct
    for number in range(distinct):
        record[at] = _mixed(unique[number] * own + salts[group])
        at += 1
    group += 1
    record[group] = max(0, min(len(words) - 1, _MAX_GROUP))
    for number in range(record[group]):
        record[at] = _mixed(words[number] * _NEXT + words[number + 1] + salts[group])
        at += 1
    group += 1
    edge = min(_EDGE, len(words))
    record[group] = 2 * edge
    for number in range(edge):
        record[at] = _mixed(words[number] * own + _POSITIONS[number] + salts[group])
        record[at + 1] = _mixed(words[len(words) - 1 - number] * own + _POSITIONS[2 * _EDGE - 1 - number] + salts[group])
        at += 2
    group += 1
    record[group] = distinct if two_agents else 0
    for number in range(record[group]):
        record[at] = _mixed(unique[number] * both + salts[group])
        at += 1
    return at


@jit
def _mixed(number: int) -> np.uint32:
    mixed = np.uint32(number)
    mixed ^= mixed >> _HALF
    mixed = np.uint32(mixed * _MIX_1)
    mixed ^= mixed >> _ODD
    mixed = np.uint32(mixed * _MIX_2)
    return mixed >> _HALF


@jit
def _distinct(numbers: Numbers, unique: Numbers) -> int:
    """Writes each different number once to `unique`, until that is full. Returns how many there are."""
    found = 0
    for number in numbers:
        for at in range(found):
            if unique[at] == number:
                break
        else:
            if found == len(unique):
                break
            unique[found] = number
            found += 1
    return found
