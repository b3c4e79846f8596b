"""The next-event model: which agent a workflow calls next, and where that call's prompt leaves what the workflow knew.

Counts in contexts of growing length, each smoothed towards the one before it: the Dirichlet prior form of back-off
(MacKay and Peto: A hierarchical Dirichlet language model, Natural Language Engineering 1(3), 1995).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple
from zlib import crc32

from pbkv_cluster.store.access.history import StepLog

END = ("", 0)
Event = tuple[str, int]
"""An agent, and the attach symbol of its prompt; or END."""

_PRIOR = 4.0  # pseudo-observations of the shorter context
_DEPTHS = (1, 2, 3, 4, 6, 8)


class Expected(NamedTuple):
    """What may come next."""

    event: Event
    probability: float
    runner_up: Event


class NextEventModel:
    def __init__(self) -> None:
        self.counts: dict[int, dict[Event, float]] = {}

    def distribution(self, steps: Sequence[StepLog], stop: int | None = None) -> dict[Event, float]:
        """Probability of each event that was ever seen, behind the first `stop` steps."""
        found: dict[Event, float] = {}
        for context in _contexts(steps, len(steps) if stop is None else stop):
            counts = self.counts.get(context)
            if counts is None:
                if found or context:
                    continue
                break
            scale = 1.0 / (sum(counts.values()) + _PRIOR)
            kept = _PRIOR * scale
            for event in found:
                found[event] *= kept
            for event, count in counts.items():
                found[event] = found.get(event, 0.0) + count * scale
        return found

    def learn(self, steps: Sequence[StepLog]) -> None:
        """Counts what followed what in a workflow that has ended."""
        for position in range(len(steps) + 1):
            event = (steps[position].agent, steps[position].symbol) if position < len(steps) else END
            for context in _contexts(steps, position):
                counts = self.counts.setdefault(context, {})
                counts[event] = counts.get(event, 0.0) + 1.0


def _contexts(steps: Sequence[StepLog], stop: int) -> list[int]:
    """Hashes of what came last, shortest first."""
    found, known, text = [0], 0, b""
    for depth in _DEPTHS:
        while known < min(depth, stop):
            known += 1
            step = steps[stop - known]
            if known == 1:
                found.append(crc32(b"agent" + step.agent.encode()))
            text += b"%s/%d;" % (step.agent.encode(), step.symbol)
        if known < depth:
            text += b"^"
        found.append(crc32(b"%d:" % depth + text))
        if known < depth:
            break
    found.append(crc32(b"at%d:" % stop + text))
    return found
