from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from pbkv_cluster.store.access.hazard import FEATURES, Ints, segment_rows
from pbkv_cluster.store.access.history import History, Segment, StepLog
from pbkv_cluster.store.access.next_event import NextEventModel


def examples(steps: Sequence[StepLog], model: NextEventModel) -> tuple[Ints, Ints, Ints, Ints]:
    """Replays a workflow: one example for each segment after each step."""
    history = History()
    at: list[tuple[dict[Segment, int], int]] = []
    parts, total = [], 0
    for log in steps:
        history.replay(log)
        x = segment_rows(history, model.distribution(history.steps))
        at.append(({s: i for i, s in enumerate(history.segments)}, total))
        parts.append(x)
        total += len(x)
    rows, when, distance, blocks = [], [], [], []
    for segment in history.segments:
        touched = segment.touched
        for t in range(touched[0], len(steps)):
            source = segment
            while t < source.born:
                source = source.origin
            index = at[t][0].get(source)
            if index is None:
                continue
            rows.append(at[t][1] + index)
            when.append(t)
            later = next((s for s in touched if s > t), 0)
            distance.append(later - t if later else 0)
            blocks.append(segment.blocks)
    x = np.concatenate(parts) if parts else np.zeros((0, FEATURES), dtype=np.int64)
    return x[rows], np.array(when, dtype=np.int64), np.array(distance, dtype=np.int64), np.array(blocks, dtype=np.int64)
