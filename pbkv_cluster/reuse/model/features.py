"""Facts: what is known of each segment of a workflow after one of its steps, as small integers.

Most facts follow from the workflow's record. A few depend on which event comes next; a forecast changes those alone, so they
are computed apart from the others.
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
    """Columns of a row of facts. Their order is part of the format of saved models."""

    # of the segment
    USED_2 = 0  # in which of the last 2 steps it was used, a bit each
    USED_4 = auto()
    USED_8 = auto()
    USED_16 = auto()
    OUTPUT = auto()  # generated, and in no prompt since
    SHARING = auto()  # how many other workflows had it, see Run
    KEY = auto()  # hash of its content, if many workflows had it
    AGE = auto()  # steps since its last use
    LAST_AGENT = auto()
    FIRST_AGENT = auto()
    FIRST_STEP = auto()
    USES = auto()
    BRANCHES = auto()  # segments that follow it
    ENDS = auto()  # whether a reply, a prompt or neither ends at its end
    ON_TOP = auto()  # it begins the path
    AT_END = auto()  # the last step ended with it
    START = auto()  # blocks before it, log2
    BLOCKS = auto()  # its length in blocks, log2
    OWN = auto()  # how many steps ago the agent that used it last ran last, and whether it left the segment out then
    LIVE = auto()  # how many agents have used it, and how many of these in their last step
    # of the segment and the next event
    IN_NEXT = auto()  # whether the likeliest next agent used it: in its last step, before that, never, or the agent is new
    IN_SECOND = auto()  # the same of the second likeliest agent
    # of the workflow
    STEP = auto()
    AGENT = auto()  # of the last step
    AGENT_1 = auto()  # of the step before
    AGENT_2 = auto()
    SYMBOL = auto()  # attach symbol of the last step
    SYMBOL_1 = auto()
    NEXT = auto()  # likeliest next event
    NEXT_SYMBOL = auto()
    CONFIDENCE = auto()  # in it
    SECOND = auto()  # second likeliest event
    REPLY = auto()  # length of the last reply in blocks, log2; -1: it is being written
    ADDED = auto()  # length in blocks of what the last prompt added, log2
    RETURN = auto()  # how many steps before the last one its agent had run; 0: in none, 6: in none of the last five


SEGMENT_FACTS = list(Fact)[: Fact.IN_NEXT]
RELATION_FACTS = [Fact.IN_NEXT, Fact.IN_SECOND]
WORKFLOW_FACTS = [
    *(Fact.STEP, Fact.AGENT, Fact.AGENT_1, Fact.AGENT_2, Fact.SYMBOL, Fact.SYMBOL_1),
    *(Fact.REPLY, Fact.ADDED, Fact.RETURN),
]
EVENT_FACTS = [Fact.NEXT, Fact.NEXT_SYMBOL, Fact.CONFIDENCE, Fact.SECOND]

NAMED_FACTS = frozenset(
    {Fact.KEY, Fact.LAST_AGENT, Fact.FIRST_AGENT, Fact.AGENT, Fact.AGENT_1, Fact.AGENT_2, Fact.NEXT, Fact.SECOND}
)
"""Facts that name an agent or a content, and so mean nothing in another workload."""

_NEW_AGENT, _IN_LAST, _BEFORE, _NEVER = range(4)
RELATIONS = 4  # number of values of a relation fact

_UNKNOWN: Event = ("?", 0)
_CONFIDENT = (0.4, 0.7, 0.9)


class TopEvents(NamedTuple):
    """The two likeliest next events: all that facts tell of the next event."""

    first: Event
    second: Event
    confidence: int  # in the first, from 0 to 3


UNKNOWN = TopEvents(_UNKNOWN, _UNKNOWN, 0)
"""Before anything was learnt."""


def facts(record: WorkflowRecord, segments: Sequence[Segment], events: Mapping[Event, float]) -> Ints:
    """One row for each of some segments of a workflow; shape (segments, facts).

    Args:
        record: of the workflow, after its latest step; at least one has begun.
        segments: of that record.
        events: probabilities of the next event.
    """
    rows = np.empty((len(segments), len(Fact)), dtype=np.int64)
    if segments:
        top = top_events(events)
        rows[:, SEGMENT_FACTS] = segment_facts(record, segments)
        rows[:, RELATION_FACTS] = [divmod(relation, RELATIONS) for relation in relations(record, segments, top)]
        rows[:, WORKFLOW_FACTS] = workflow_facts(record)
        rows[:, EVENT_FACTS] = event_facts(top)
    return rows


def segment_facts(record: WorkflowRecord, segments: Sequence[Segment]) -> list[tuple[int, ...]]:
    """The columns `SEGMENT_FACTS`."""
    now = len(record.steps) - 1
    end = record.ends[now]
    last_step = record.last_step
    rows: list[tuple[int, ...]] = []
    for segment in segments:
        last_use = segment.used_at[-1]
        age = now - last_use
        ran = last_step[segment.last_agent]
        agents = segment.agents
        if len(agents) == 1:
            live = 5 if ran == last_use else 4
        else:
            live = 4 * min(len(agents), 3) + min(sum([last_step[name] == step for name, step in agents.items()]), 3)
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
                min(segment.used_at[0], 20),
                min(len(segment.used_at), 6),
                min(segment.branches, 3),
                segment.ends,
                segment.parent is None,
                segment is end,
                segment.start.bit_length(),
                segment.blocks.bit_length(),
                2 * min(now - ran, 5) + (ran > last_use),
                live,
            )
        )
    return rows


def workflow_facts(record: WorkflowRecord) -> tuple[int, ...]:
    """The columns `WORKFLOW_FACTS`, alike for all segments."""
    steps = record.steps
    now = len(steps) - 1
    last = steps[now]
    before = steps[now - 1] if now else None
    return (
        now if now < 40 else 40,
        _name(last.agent),
        _name(before.agent) if before else 0,
        _name(steps[now - 2].agent) if now > 1 else 0,
        last.symbol,
        before.symbol if before else -1,
        last.output_blocks.bit_length() if last.ended_at >= 0 else -1,
        sum([run.blocks for run in last.runs]).bit_length(),
        next((lag for lag in range(1, min(now, 5) + 1) if steps[now - lag].agent == last.agent), 6 if now > 5 else 0),
    )


def relations(record: WorkflowRecord, segments: Sequence[Segment], top: TopEvents) -> list[int]:
    """The columns `RELATION_FACTS` as one number each: IN_NEXT * RELATIONS + IN_SECOND."""
    first, second = top.first[0], top.second[0]
    last_step = record.last_step
    last_first, last_second = last_step.get(first), last_step.get(second)
    if last_first is None and last_second is None:
        return [0] * len(segments)
    found = []
    for segment in segments:
        agents = segment.agents
        found.append(RELATIONS * _relation(agents.get(first), last_first) + _relation(agents.get(second), last_second))
    return found


def event_facts(top: TopEvents) -> tuple[int, ...]:
    """The columns `EVENT_FACTS`, alike for all segments."""
    return _event(top.first), top.first[1], top.confidence, _event(top.second)


def top_events(events: Mapping[Event, float]) -> TopEvents:
    """The two likeliest events. Ties fall by name, not by the order in which the events were learnt."""
    first = second = _UNKNOWN
    best = runner_up = 0.0
    for event, probability in events.items():
        if probability > best or (probability == best and event < first):
            first, second, best, runner_up = event, first, probability, best
        elif probability > runner_up or (probability == runner_up and event < second):
            second, runner_up = event, probability
    return TopEvents(first, second, sum(best >= level for level in _CONFIDENT))


def _relation(used: int | None, last: int | None) -> int:
    """Whether an agent has used a segment, given the last step at which it did and the last at which it ran."""
    if last is None:
        return _NEW_AGENT
    return _NEVER if used is None else _IN_LAST if used == last else _BEFORE


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
