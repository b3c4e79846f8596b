"""What a workflow that has ended teaches: each of its segments, as it was known after each step, and when it was used next."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from pbkv_cluster.core.access_log import StepLog
from pbkv_cluster.reuse.model.features import Fact, Ints, facts
from pbkv_cluster.reuse.model.next_event import NextEventModel
from pbkv_cluster.reuse.record.segment import Segment
from pbkv_cluster.reuse.record.workflow_record import WorkflowRecord

_MANY = 120**2  # square of the steps up to which all are taken


class Examples(NamedTuple):
    """See `HazardModel.learn`."""

    rows: Ints
    when: Ints
    distance: Ints
    blocks: Ints


def stride_of(steps: int) -> int:
    """Of how many steps one is taken, in a workflow of so many."""
    return 1 + steps**2 // _MANY


def examples(steps: Sequence[StepLog], model: NextEventModel) -> Examples:
    """Replays a workflow's log.

    Of workflows with many steps, not all steps are taken: examples grow with the square of their number.

    A segment that was cut later stands for each of its parts in what was known before: the parts' futures differ.

    Raises:
        ValueError: the steps contradict each other.
    """
    history = WorkflowRecord()
    known: dict[int, dict[Segment, int]] = {}  # after each of these steps, the rows of the segments
    parts, total = [], 0
    stride = stride_of(len(steps))
    for position, log in enumerate(steps):
        history.replay(log)
        if position % stride:
            continue
        known[position] = {segment: total + at for at, segment in enumerate(history.segments)}
        parts.append(facts(history, history.segments, model.distribution(history.steps)))
        total += len(history.segments)
    found: list[tuple[int, int, int, int]] = []
    for segment in history.segments:
        touched = segment.touched
        for position in range(-(-touched[0] // stride) * stride, len(steps), stride):
            stood_for = segment
            while position < stood_for.born and stood_for.origin is not None:
                stood_for = stood_for.origin
            row = known[position].get(stood_for)
            if row is not None:
                later = bisect_right(touched, position)
                distance = touched[later] - position if later < len(touched) else 0
                found.append((position, row, distance, segment.blocks))
    found.sort()
    when, rows, distance_, blocks = np.array(found, dtype=np.int64).reshape(-1, 4).T
    facts_ = np.concatenate(parts) if parts else np.zeros((0, len(Fact)), dtype=np.int64)
    return Examples(facts_[rows], when, distance_, blocks)
