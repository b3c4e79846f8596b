"""What is known of each segment of a workflow between two steps, as small integers.

A few of these facts depend on what is expected next, and change with a forecast: they are found apart from the others.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from enum import IntEnum, auto
from typing import NamedTuple
from zlib import crc32

import numpy as np
import numpy.typing as npt

from pbkv_cluster.reuse.model.next_event import Event
from pbkv_cluster.reuse.record.segment import Segment
from pbkv_cluster.reuse.record.workflow_record import WorkflowRecord

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


_FORETOLD = (Fact.IN_NEXT, Fact.IN_SECOND, Fact.NEXT, Fact.NEXT_SYMBOL, Fact.CONFIDENCE, Fact.SECOND)
FORETOLD = np.array(_FORETOLD)  # columns that depend on what is expected next
SETTLED = np.array([fact for fact in Fact if fact not in _FORETOLD])  # and the others

_NEVER_CALLED, _IN_LAST, _BEFORE, _NEVER = range(4)
_UNKNOWN: Event = ("?", 0)
_CONFIDENT = (0.4, 0.7, 0.9)


class Likeliest(NamedTuple):
    """All that facts tell of the next event."""

    first: Event
    second: Event
    confidence: int  # in the first


def facts(history: WorkflowRecord, segments: Sequence[Segment], expected: Mapping[Event, float]) -> Ints:
    """One row for each of some segments of a workflow.

    Args:
        history: of the workflow, behind its latest step; at least one has begun.
        segments: of that history.
        expected: probabilities of the next event.
    """
    rows = np.empty((len(segments), len(Fact)), dtype=np.int64)
    rows[:, SETTLED] = settled_facts(history, segments)
    rows[:, FORETOLD] = foretold_facts(history, segments, likeliest(expected))
    return rows


def settled_facts(history: WorkflowRecord, segments: Sequence[Segment]) -> Ints:
    """The columns `SETTLED` of `facts`."""
    steps = history.steps
    now = len(steps) - 1
    last = steps[now]
    workflow = (
        min(now, 40),
        *(_name(steps[now - back].agent) if back <= now else 0 for back in range(3)),
        *(steps[now - back].symbol if back <= now else -1 for back in range(2)),
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
                *workflow,
            )
        )
    return np.array(rows, dtype=np.int64).reshape(-1, len(SETTLED))


def foretold_facts(history: WorkflowRecord, segments: Sequence[Segment], expected: Likeliest) -> Ints:
    """The columns `FORETOLD` of `facts`."""
    first, second, confidence = expected
    workflow = _event(first), first[1], confidence, _event(second)
    in_first, in_second = (_relations(history, segments, agent) for agent, _ in (first, second))
    rows = [(*each, *workflow) for each in zip(in_first, in_second, strict=True)]
    return np.array(rows, dtype=np.int64).reshape(-1, len(FORETOLD))


def likeliest(expected: Mapping[Event, float]) -> Likeliest:
    """The two likeliest events, and how sure the first is. Ties fall by name, not by the order in which they were learnt."""
    first = second = _UNKNOWN
    best = runner_up = 0.0
    for event, chance in expected.items():
        if chance > best or (chance == best and event < first):
            first, second, best, runner_up = event, first, chance, best
        elif chance > runner_up or (chance == runner_up and event < second):
            second, runner_up = event, chance
    return Likeliest(first, second, sum(best >= level for level in _CONFIDENT))


def _relations(history: WorkflowRecord, segments: Sequence[Segment], agent: str) -> list[int]:
    """Whether an agent has used each segment."""
    last = history.last_step.get(agent)
    if last is None:
        return [_NEVER_CALLED] * len(segments)
    steps = [segment.agents.get(agent) for segment in segments]
    return [_NEVER if step is None else _IN_LAST if step == last else _BEFORE for step in steps]


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
