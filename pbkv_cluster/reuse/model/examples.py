"""Training examples from a workflow that has ended: each of its segments after each step, and when it was used next."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from pbkv_cluster.core.workflow.access_log import StepLog
from pbkv_cluster.reuse.model.features import Fact, Ints, facts
from pbkv_cluster.reuse.model.next_event import NextEventModel
from pbkv_cluster.reuse.record.replay import replay
from pbkv_cluster.reuse.record.segment import Segment
from pbkv_cluster.reuse.record.workflow_record import WorkflowRecord

_MANY = 120**2  # square of the number of steps up to which all are taken


class Examples(NamedTuple):
    """The arguments of `HazardModel.learn`."""

    facts: Ints
    when: Ints
    distance: Ints
    blocks: Ints


def stride_of(steps: int) -> int:
    """Every how many steps one is taken, in a workflow of so many."""
    return 1 + steps**2 // _MANY


def examples(steps: Sequence[StepLog], model: NextEventModel) -> Examples:
    """Replays a workflow's log.

    Examples grow with the square of the number of steps, so of workflows with many steps only some steps are taken.

    A segment that was split later stands for each of its parts in what was known before: the parts' futures differ.

    Raises:
        ValueError: the steps contradict each other.
    """
    record = WorkflowRecord()
    rows_after: dict[int, dict[Segment, int]] = {}  # each taken step's position to the rows of the segments after it
    parts, total = [], 0
    stride = stride_of(len(steps))
    for position, log in enumerate(steps):
        replay(record, log)
        if position % stride:
            continue
        rows_after[position] = {segment: total + at for at, segment in enumerate(record.segments)}
        parts.append(facts(record, record.segments, model.distribution(record.steps)))
        total += len(record.segments)
    found: list[tuple[int, int, int, int]] = []
    for segment in record.segments:
        used_at = segment.used_at
        for position in range(-(-used_at[0] // stride) * stride, len(steps), stride):
            before = segment
            while position < before.born and before.origin is not None:
                before = before.origin
            row = rows_after[position].get(before)
            if row is not None:
                later = bisect_right(used_at, position)
                distance = used_at[later] - position if later < len(used_at) else 0
                found.append((position, row, distance, segment.blocks))
    found.sort()
    when, rows, distance_, blocks = np.array(found, dtype=np.int64).reshape(-1, 4).T
    facts_ = np.concatenate(parts) if parts else np.zeros((0, len(Fact)), dtype=np.int64)
    return Examples(facts_[rows], when, distance_, blocks)
