"""Contexts made of facts, and their rows in the table of a hazard model.

A context is a combination of a few facts. The model keeps counts for every combination of their values, so facts that matter
together have to stand together in one context.

The row is a multiply-add hash (Dietzfelbinger, STACS 1996) of the facts: a sum over them, then a final mix. So the sum over the
facts that follow from a record can be kept, and only the rest added, when a forecast changes the next event.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from zlib import crc32

import numpy as np
import numpy.typing as npt

from pbkv_cluster.reuse.model.features import (
    EVENT_FACTS,
    NAMED_FACTS,
    RELATION_FACTS,
    RELATIONS,
    SEGMENT_FACTS,
    WORKFLOW_FACTS,
    Fact,
    Ints,
    TopEvents,
    event_facts,
)

Sums = npt.NDArray[np.uint64]

F = Fact
CONTEXTS: tuple[tuple[Fact, ...], ...] = (
    # how it was used
    (F.USED_4, F.OUTPUT, F.SHARING),
    (F.USED_8, F.OUTPUT, F.BRANCHES),
    (F.USED_16, F.OUTPUT),
    (F.AGE, F.USES, F.OUTPUT, F.ENDS),
    # who used it, and who runs
    (F.AGENT, F.LAST_AGENT, F.AGE, F.OUTPUT, F.ENDS),
    (F.AGENT, F.LAST_AGENT, F.USED_4, F.BRANCHES),
    (F.AGENT, F.AGENT_1, F.USED_4, F.OUTPUT),
    (F.AGENT, F.AGENT_1, F.AGENT_2, F.LAST_AGENT, F.AGE),
    (F.AGENT, F.AGENT_1, F.AGENT_2, F.SYMBOL, F.SYMBOL_1, F.USED_8, F.LAST_AGENT),
    (F.FIRST_AGENT, F.FIRST_STEP, F.AGENT, F.ENDS),
    # where the last prompts left what was known
    (F.SYMBOL, F.SYMBOL_1, F.USED_4, F.OUTPUT, F.ENDS),
    (F.AGENT, F.SYMBOL, F.AGE, F.OUTPUT, F.BRANCHES),
    # the next event
    (F.NEXT, F.CONFIDENCE, F.IN_NEXT, F.USED_2, F.OUTPUT, F.ENDS),
    (F.NEXT, F.IN_NEXT, F.SECOND, F.IN_SECOND, F.CONFIDENCE),
    (F.NEXT, F.CONFIDENCE, F.LAST_AGENT, F.AGE, F.ENDS),
    (F.NEXT, F.USED_4, F.OUTPUT, F.AT_END),
    (F.NEXT_SYMBOL, F.CONFIDENCE, F.USED_4, F.OUTPUT, F.ENDS, F.BRANCHES),
    (F.NEXT, F.SECOND, F.CONFIDENCE, F.USED_4, F.SYMBOL),
    (F.IN_NEXT, F.AGE, F.CONFIDENCE, F.AT_END, F.OUTPUT),
    # its content
    (F.KEY, F.NEXT, F.SHARING),
    (F.KEY, F.STEP),
    (F.SHARING, F.AGE, F.STEP, F.ON_TOP),
    # how far the workflow has come
    (F.STEP, F.FIRST_STEP, F.OUTPUT, F.ENDS),
    (F.STEP, F.AGE, F.LAST_AGENT, F.AGENT),
    # lengths
    (F.AGENT, F.REPLY, F.LAST_AGENT, F.AGE, F.ENDS),
    (F.NEXT, F.REPLY, F.USED_4, F.OUTPUT),
    (F.REPLY, F.ADDED, F.OUTPUT, F.AT_END, F.AGENT),
    (F.START, F.BLOCKS, F.USED_4, F.AGENT),
    # structure alone
    (F.OWN, F.LIVE, F.SYMBOL, F.OUTPUT),
    (F.OWN, F.USED_8, F.RETURN),
    (F.IN_NEXT, F.IN_SECOND, F.CONFIDENCE, F.USED_4, F.LIVE),
    (F.LIVE, F.AGE, F.SHARING, F.ENDS),
    (F.IN_NEXT, F.NEXT_SYMBOL, F.CONFIDENCE, F.OWN, F.ENDS),
    (F.SYMBOL, F.SYMBOL_1, F.OWN, F.AT_END, F.OUTPUT),
    (F.START, F.BLOCKS, F.OWN, F.LIVE),
)


def _multipliers(contexts: Sequence[Sequence[Fact]]) -> tuple[Sums, Sums]:
    draws = np.random.default_rng(20260522)  # part of the format of saved models
    odd = draws.integers(0, 2**63, size=(len(Fact), len(contexts)), dtype=np.uint64) * np.uint64(2) + np.uint64(1)
    used = np.zeros_like(odd)
    for number, context in enumerate(contexts):
        used[list(context), number] = 1
    factors = odd * used
    salt = draws.integers(0, 2**63, size=len(contexts), dtype=np.uint64)
    return factors, salt + np.uint64(2) * factors.sum(axis=0)  # facts start at -1, and count from 1


_HALF, _MIX = np.array(32, dtype=np.uint64), np.array(0x9E3779B97F4A7C15, dtype=np.uint64)
_FACTORS, _SALT = _multipliers(CONTEXTS)

_HAS_EVENT = _FACTORS[RELATION_FACTS + EVENT_FACTS].any(axis=0)
RECORD_CONTEXTS = np.flatnonzero(~_HAS_EVENT)  # contexts of facts that follow from the record alone
EVENT_CONTEXTS = np.flatnonzero(_HAS_EVENT)  # contexts that depend on the next event as well
STRUCTURAL_CONTEXTS = np.array([at for at, context in enumerate(CONTEXTS) if NAMED_FACTS.isdisjoint(context)])
CONTEXT_ORDER = np.concatenate([RECORD_CONTEXTS, EVENT_CONTEXTS])  # columns of `record_sums`
FIRST_EVENT_CONTEXT = len(RECORD_CONTEXTS)  # in that order

_SEGMENT_FACTORS, _WORKFLOW_FACTORS = _FACTORS[SEGMENT_FACTS][:, CONTEXT_ORDER], _FACTORS[WORKFLOW_FACTS][:, CONTEXT_ORDER]
_ORDERED_SALT = _SALT[CONTEXT_ORDER]
_EVENT_FACTORS = _FACTORS[EVENT_FACTS][:, EVENT_CONTEXTS]
_ONE, _OTHER = (_FACTORS[fact, EVENT_CONTEXTS] for fact in RELATION_FACTS)
_RELATION_SUMS = np.array(
    [_ONE * np.uint64(one) + _OTHER * np.uint64(other) for one in range(RELATIONS) for other in range(RELATIONS)]
)


def fingerprint() -> int:
    """A hash of the facts, the contexts and how they are hashed: rows are of the same contexts only where it is equal."""
    text = repr([[fact.name for fact in Fact], CONTEXTS]).encode()
    return crc32(_FACTORS.tobytes(), crc32(text))


def context_rows(facts: Ints, bits: int) -> Ints:
    """The row of every context in a table of 2^bits rows. Shape (segments, facts) to (segments, contexts)."""
    return table_rows(facts.view(np.uint64) @ _FACTORS + _SALT, bits)


def record_sums(segment_facts: Sequence[Sequence[int]], workflow_facts: Sequence[Sequence[int]], counts: Sequence[int]) -> Sums:
    """Sums over the facts that follow from the record.

    Args:
        segment_facts: of some segments, those of one workflow after those of another.
        workflow_facts: of each workflow.
        counts: segments of each workflow.

    Returns:
        Shape (segments, contexts), contexts in `CONTEXT_ORDER`.
    """
    of_workflows = np.array(workflow_facts, dtype=np.int64).view(np.uint64).dot(_WORKFLOW_FACTORS)
    of_workflows += _ORDERED_SALT
    rows = np.array(segment_facts, dtype=np.int64).reshape(-1, len(SEGMENT_FACTS))
    found: Sums = rows.view(np.uint64).dot(_SEGMENT_FACTORS)
    found += of_workflows if len(counts) == 1 else of_workflows.repeat(counts, axis=0)
    return found


def event_sums(relations: Sequence[int], tops: Sequence[TopEvents], counts: Sequence[int]) -> Sums:
    """Sums over the facts that depend on the next event.

    Args:
        relations: of some segments, those of one workflow after those of another.
        tops: the likeliest events of each workflow.
        counts: segments of each workflow.

    Returns:
        Shape (segments, event contexts).
    """
    found: Sums = _RELATION_SUMS.take(np.array(relations, dtype=np.int64), axis=0)
    found += _sum_of(tops[0]) if len(tops) == 1 else np.array([_sum_of(top) for top in tops]).repeat(counts, axis=0)
    return found


def table_rows(sums: Sums, bits: int) -> Ints:
    """The rows of a table of 2^bits rows for sums over all facts."""
    hashed = sums ^ (sums >> _HALF)
    hashed *= _MIX
    hashed >>= np.uint64(64 - bits)
    return hashed.view(np.int64)


@lru_cache(maxsize=4096)
def _sum_of(top: TopEvents) -> Sums:
    found: Sums = np.array(event_facts(top), dtype=np.int64).view(np.uint64) @ _EVENT_FACTORS
    return found
