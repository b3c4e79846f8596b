"""What is known of each segment of a workflow between two steps, as small integers; and the contexts made of them.

A context names a few of these facts. The access model keeps one count for each combination of their values, so what matters
together has to stand together in one context.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from enum import IntEnum, auto
from zlib import crc32

import numpy as np
import numpy.typing as npt

from pbkv_cluster.store.access.history import History, Segment
from pbkv_cluster.store.access.next_event import Event

Ints = npt.NDArray[np.int64]


class Fact(IntEnum):
    """Columns of a row of facts."""

    # of the segment
    USED_2 = 0  # at which of the last 2 steps it was used, a bit each
    USED_4 = auto()
    USED_8 = auto()
    USED_16 = auto()
    OUTPUT = auto()  # generated, and in no prompt since
    SHARING = auto()  # how many workflows had it, see Run
    KEY = auto()  # which it is, where many had it
    AGE = auto()  # steps since its last use
    LAST_AGENT = auto()
    FIRST_AGENT = auto()
    FIRST_STEP = auto()
    USES = auto()
    BRANCHES = auto()  # segments that follow it
    ENDS = auto()  # whether a reply ends at its end, a prompt, or neither
    ON_TOP = auto()  # it begins the path
    AT_END = auto()  # the last step ended with it
    START = auto()  # blocks before it, log2
    BLOCKS = auto()  # its length, log2
    # of the segment and what is expected next
    IN_NEXT = auto()  # whether the likeliest next agent used it: in its last prompt, before that, never, or never called yet
    IN_SECOND = auto()  # the same of the runner-up
    # of the workflow
    STEP = auto()
    AGENT = auto()  # of the last step
    AGENT_1 = auto()  # of the one before
    AGENT_2 = auto()
    SYMBOL = auto()  # of the last step
    SYMBOL_1 = auto()
    NEXT = auto()  # likeliest next event
    NEXT_SYMBOL = auto()
    CONFIDENCE = auto()  # in it
    SECOND = auto()  # the runner-up
    REPLY = auto()  # length of the last reply, log2; -1: it is being written
    ADDED = auto()  # length of what the last prompt added, log2


F = Fact
CONTEXTS: tuple[tuple[Fact, ...], ...] = (
    # how it was used
    (F.USED_4, F.OUTPUT, F.SHARING),
    (F.USED_8, F.OUTPUT, F.BRANCHES),
    (F.USED_16, F.OUTPUT),
    (F.AGE, F.USES, F.OUTPUT, F.ENDS),
    # and by whom, and who runs
    (F.AGENT, F.LAST_AGENT, F.AGE, F.OUTPUT, F.ENDS),
    (F.AGENT, F.LAST_AGENT, F.USED_4, F.BRANCHES),
    (F.AGENT, F.AGENT_1, F.USED_4, F.OUTPUT),
    (F.AGENT, F.AGENT_1, F.AGENT_2, F.LAST_AGENT, F.AGE),
    (F.AGENT, F.AGENT_1, F.AGENT_2, F.SYMBOL, F.SYMBOL_1, F.USED_8, F.LAST_AGENT),
    (F.FIRST_AGENT, F.FIRST_STEP, F.AGENT, F.ENDS),
    # where the last prompts left the known
    (F.SYMBOL, F.SYMBOL_1, F.USED_4, F.OUTPUT, F.ENDS),
    (F.AGENT, F.SYMBOL, F.AGE, F.OUTPUT, F.BRANCHES),
    # what is expected next
    (F.NEXT, F.CONFIDENCE, F.IN_NEXT, F.USED_2, F.OUTPUT, F.ENDS),
    (F.NEXT, F.IN_NEXT, F.SECOND, F.IN_SECOND, F.CONFIDENCE),
    (F.NEXT, F.CONFIDENCE, F.LAST_AGENT, F.AGE, F.ENDS),
    (F.NEXT, F.USED_4, F.OUTPUT, F.AT_END),
    (F.NEXT_SYMBOL, F.CONFIDENCE, F.USED_4, F.OUTPUT, F.ENDS, F.BRANCHES),
    (F.NEXT, F.SECOND, F.CONFIDENCE, F.USED_4, F.SYMBOL),
    (F.IN_NEXT, F.AGE, F.CONFIDENCE, F.AT_END, F.OUTPUT),
    # which it is
    (F.KEY, F.NEXT, F.SHARING),
    (F.KEY, F.STEP),
    (F.SHARING, F.AGE, F.STEP, F.ON_TOP),
    # how far the workflow is
    (F.STEP, F.FIRST_STEP, F.OUTPUT, F.ENDS),
    (F.STEP, F.AGE, F.LAST_AGENT, F.AGENT),
    # lengths
    (F.AGENT, F.REPLY, F.LAST_AGENT, F.AGE, F.ENDS),
    (F.NEXT, F.REPLY, F.USED_4, F.OUTPUT),
    (F.REPLY, F.ADDED, F.OUTPUT, F.AT_END, F.AGENT),
    (F.START, F.BLOCKS, F.USED_4, F.AGENT),
)

_NEVER_CALLED, _IN_LAST, _BEFORE, _NEVER = range(4)
_UNKNOWN: Event = ("?", 0)
_CONFIDENT = (0.4, 0.7, 0.9)


def facts(history: History, segments: Sequence[Segment], expected: Mapping[Event, float]) -> Ints:
    """One row for each of some segments of a workflow.

    Args:
        history: of the workflow, behind its latest step; at least one has begun.
        segments: of that history.
        expected: probabilities of the next event.
    """
    steps = history.steps
    now = len(steps) - 1
    first, second, confidence = _likeliest(expected)
    first_last, second_last = history.last_step.get(first[0]), history.last_step.get(second[0])
    last = steps[now]
    workflow = (
        min(now, 40),
        *(_name(steps[now - back].agent) if back <= now else 0 for back in range(3)),
        *(steps[now - back].symbol if back <= now else -1 for back in range(2)),
        _event(first),
        first[1],
        confidence,
        _event(second),
        last.output_blocks.bit_length() if last.ended_at >= 0 else -1,
        sum(run.blocks for run in last.runs).bit_length(),
    )
    end = history.ends[now]
    rows = []
    for segment in segments:
        age = now - segment.touched[-1]
        used = segment.mask << age & 0xFFFF if age < 16 else 0
        rows.append(
            (
                used & 0x3,
                used & 0xF,
                used & 0xFF,
                used,
                segment.output,
                segment.sharing,
                segment.key,
                age if age < 16 else 14 + age.bit_length(),
                _name(segment.last_agent),
                _name(segment.first_agent),
                min(segment.touched[0], 20),
                min(len(segment.touched), 6),
                min(segment.branches, 3),
                segment.ends,
                segment.parent is None,
                segment is end,
                segment.start.bit_length(),
                segment.blocks.bit_length(),
                _relation(segment, first[0], first_last),
                _relation(segment, second[0], second_last),
                *workflow,
            )
        )
    return np.array(rows, dtype=np.int64).reshape(-1, len(Fact))


def _likeliest(expected: Mapping[Event, float]) -> tuple[Event, Event, int]:
    """The two likeliest events, and how sure the first is. Ties fall by name, not by the order in which they were learnt."""
    first = second = _UNKNOWN
    best = runner_up = 0.0
    for event, chance in expected.items():
        if chance > best or (chance == best and event < first):
            first, second, best, runner_up = event, first, chance, best
        elif chance > runner_up or (chance == runner_up and event < second):
            second, runner_up = event, chance
    return first, second, sum(best >= level for level in _CONFIDENT)


def _relation(segment: Segment, agent: str, last: int | None) -> int:
    if last is None:
        return _NEVER_CALLED
    at = segment.agents.get(agent)
    return _NEVER if at is None else _IN_LAST if at == last else _BEFORE


_names: dict[str, int] = {}


def _name(text: str) -> int:
    found = _names.get(text)
    if found is None:
        if len(_names) > 65_536:
            _names.clear()
        found = _names[text] = crc32(text.encode())
    return found


def _event(event: Event) -> int:
    return _name(event[0]) * 31 + event[1]


def _multipliers(contexts: Sequence[Sequence[Fact]]) -> tuple[npt.NDArray[np.uint64], npt.NDArray[np.uint64]]:
    draws = np.random.default_rng(20260522)  # part of the format of saved models
    odd = draws.integers(0, 2**63, size=(len(Fact), len(contexts)), dtype=np.uint64) * np.uint64(2) + np.uint64(1)
    used = np.zeros_like(odd)
    for number, context in enumerate(contexts):
        used[list(context), number] = 1
    return odd * used, draws.integers(0, 2**63, size=len(contexts), dtype=np.uint64)


_ODD, _SALT = _multipliers(CONTEXTS)


def context_rows(rows: Ints, bits: int) -> Ints:
    """The place of every context of every row in a table of 2^bits: a multiply-add hash (Dietzfelbinger, STACS 1996).

    Shape (rows, facts) to (rows, contexts).
    """
    hashed = (rows + 2).astype(np.uint64) @ _ODD + _SALT
    hashed ^= hashed >> np.uint64(32)
    hashed *= np.uint64(0x9E3779B97F4A7C15)
    return (hashed >> np.uint64(64 - bits)).astype(np.int64)
