"""What the network reads of a situation, and batches of it.

Agents are kept by label, and numbered only in the batch for one network: a network knows the agents of its training, while the
workload's columns change.
"""

from array import array
from collections.abc import Mapping, Sequence
from itertools import chain, pairwise, repeat
from math import log1p
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from pbkv_cluster.core.text.words import WORD_BITS
from pbkv_cluster.predictor_service.workflow.situation import END, RECENT, Situation

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float32]

POSITIONS = RECENT + 1  # of the attention: the latest steps, the latest first, and the start of the workflow
TOKENS = 4096  # values of the hash of words and pieces
GROUPS = 6  # of tokens, each summed by itself: see `features`
COUNTS = 3  # numbers read as they are: see `features`

_KINDS = 5  # of tokens, which are hashed differently
_EDGE = 3  # words at either end of an output that are read with their position
_NOTHING = (None,) * POSITIONS
_EMPTY: npt.NDArray[np.int16] = np.zeros(0, dtype=np.int16)


class Features(NamedTuple):
    """A situation, hashed."""

    agents: tuple[str | None, ...]  # POSITIONS, the latest first, then END for the time before the first step, then None
    numbers: bytes  # float32: COUNTS of them, 1 if the latest output is known, and the number of tokens in each group
    tokens: bytes  # int16, group by group
    hidden: bytes  # little-endian float16, all finite; empty: unknown

    @property
    def current(self) -> str:
        """Label of the latest agent, END before the first step."""
        return self.agents[0] or END

    @property
    def finished(self) -> bool:
        """Whether the latest output is known."""
        return bool(np.frombuffer(self.numbers, dtype=np.float32)[COUNTS] > 0.0)


class Example(NamedTuple):
    """A situation, and the labels of the K steps that followed."""

    features: Features
    targets: tuple[str, ...]


class Batch(NamedTuple):
    """Features of N situations."""

    agents: Ints  # [N, POSITIONS] nodes; -1: no step, or an agent that the network does not know
    numbers: Floats  # [N, COUNTS + 1]; the last is 1 if the latest output is known
    tokens: npt.NDArray[np.int16]  # of all situations, group by group
    offsets: Ints  # [N * GROUPS] where each group starts in `tokens`
    scales: Floats  # [N * GROUPS] 1/√(tokens of the group)
    hidden: npt.NDArray[np.float16]  # [N, size], zeros if unknown


def features(situation: Situation) -> Features:
    """What the network reads of a situation."""
    agents = situation.agents[::-1]
    words = _hashed(situation.words, 1)
    groups = (
        _hashed(situation.task, 0),
        words if situation.finished else _EMPTY,
        _EMPTY if situation.finished else words,
        _hashed(_edges(situation.words), 2) if situation.finished else _EMPTY,
        _hashed(_pairs(situation.words), 3) if situation.finished else _EMPTY,
        _hashed(situation.pieces, 4),
    )
    counts = log1p(situation.step) / 3.0, log1p(situation.run), log1p(situation.count) / 2.0
    return Features(
        (*agents, END, *_NOTHING)[:POSITIONS] if len(agents) < RECENT else (*agents, None),
        array("f", (*counts, situation.finished, *map(len, groups))).tobytes(),
        np.concatenate(groups).tobytes(),
        situation.hidden if _is_finite(situation.hidden) else b"",
    )


def batch_of(situations: Sequence[Features], nodes: Mapping[str, int], hidden: int) -> Batch:
    """Situations as the input of one network.

    Args:
        situations: the network must know the latest agent of each.
        nodes: of the network's agents, by label.
        hidden: size of a hidden state; one of another size counts as unknown.
    """
    size = len(situations)
    known: Mapping[str | None, int] = nodes  # type: ignore[assignment]  # None is never among them
    paths: dict[tuple[str | None, ...], int] = {}  # different ones: fewer than workflows
    taken = [paths.setdefault(each.agents, len(paths)) for each in situations]
    agents = np.fromiter(map(known.get, chain.from_iterable(paths), repeat(-1)), np.int64, len(paths) * POSITIONS)
    numbers = np.frombuffer(b"".join([each.numbers for each in situations]), dtype=np.float32).reshape(size, -1)
    lengths = numbers[:, COUNTS + 1 :].astype(np.int64).ravel()
    empty = bytes(2 * hidden)
    states = b"".join([each.hidden if len(each.hidden) == len(empty) else empty for each in situations])
    return Batch(
        agents.reshape(-1, POSITIONS)[taken],
        numbers[:, : COUNTS + 1].copy(),
        np.frombuffer(b"".join([each.tokens for each in situations]), dtype=np.int16),
        np.cumsum(lengths) - lengths,
        (1.0 / np.sqrt(np.maximum(lengths, 1))).astype(np.float32),
        np.array(np.frombuffer(states, dtype="<f2"), dtype=np.float16).reshape(size, hidden),
    )


def targets_of(examples: Sequence[Example], nodes: Mapping[str, int]) -> Ints:
    """Nodes [N, K] of the targets, -1 for labels that the network does not know."""
    return np.array([[nodes.get(label, -1) for label in example.targets] for example in examples], dtype=np.int64)


def _is_finite(hidden: bytes) -> bool:
    return len(hidden) % 2 == 0 and bool(np.isfinite(np.frombuffer(hidden, dtype="<f2")).all())


def _edges(words: Sequence[int]) -> list[int]:
    return [word * 2 * _EDGE + position for position, word in enumerate((*words[:_EDGE], *words[-_EDGE:]))]


def _pairs(words: Sequence[int]) -> list[int]:
    return [(one << WORD_BITS) + other for one, other in pairwise(words)]


def _hashed(words: Sequence[int], kind: int) -> npt.NDArray[np.int16]:
    if not words:
        return _EMPTY
    mixed = (np.array(words, dtype=np.uint64) * np.uint64(_KINDS) + np.uint64(kind)) * np.uint64(0x9E3779B97F4A7C15)
    return (mixed >> np.uint64(52)).astype(np.int16)  # the upper 12 bits
