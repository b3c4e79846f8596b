"""The next-event model: which agent a workflow calls next, and where that step's prompt leaves what the workflow knew.

It counts events in contexts of growing length, each smoothed towards the next shorter one: the Dirichlet prior form of back-off
(MacKay and Peto: A hierarchical Dirichlet language model, Natural Language Engineering 1(3), 1995).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from zlib import crc32

from pbkv_cluster.core.workflow.access_log import StepLog

Event = tuple[str, int]
"""An agent, and the attach symbol of its prompt (see `attach_symbol`)."""

END: Event = ("", 0)

START = 0
"""The shortest context, which says nothing of the workflow. It counts every event, and so the ends of all workflows."""

_PRIOR = 4.0  # pseudo-observations of the shorter context
_SEEDS = tuple((depth, crc32(b"last%d:" % depth)) for depth in (1, 2, 3, 4, 6, 8))  # numbers of events, and hashes of those
_AGENT_SEED = crc32(b"agent:")
MOST_CONTEXTS = 200_000  # 100 bytes each; beyond, the one that was seen longest ago is dropped
_MOST_EVENTS = 1024  # of one context; beyond, the rarest is dropped


class NextEventModel:
    """Counts of events by context. Contexts are 32-bit hashes."""

    def __init__(self) -> None:
        self._counts: dict[int, dict[Event, float]] = {}  # the one seen longest ago first

    def __len__(self) -> int:
        """Number of contexts."""
        return len(self._counts)

    def distribution(self, steps: Sequence[StepLog]) -> dict[Event, float]:
        """Probability of each next event after some steps, as far as it was ever seen. Empty before anything was learnt."""
        found: dict[Event, float] = {}
        left = 1.0  # what the longer contexts leave to the shorter
        for context in reversed(contexts(steps, len(steps))):
            counts = self._counts.get(context)
            if counts is None:
                continue
            scale = left / (sum(counts.values()) + _PRIOR)
            for event, count in counts.items():
                found[event] = found.get(event, 0.0) + count * scale
            left = _PRIOR * scale
        return found

    def learn(self, steps: Sequence[StepLog]) -> set[int]:
        """Counts the events of a workflow that has ended. Returns the contexts that have changed."""
        changed: set[int] = set()
        for position in range(len(steps) + 1):
            event = (steps[position].agent, steps[position].symbol) if position < len(steps) else END
            for context in contexts(steps, position):
                counts = self._counts.pop(context, None) or {}
                counts[event] = counts.get(event, 0.0) + 1.0
                if len(counts) > _MOST_EVENTS:
                    del counts[min(counts, key=counts.__getitem__)]
                self._counts[context] = counts
                changed.add(context)
        while len(self._counts) > MOST_CONTEXTS:
            del self._counts[next(iter(self._counts))]
        return changed

    def counts(self, chosen: set[int] | None = None) -> Iterator[tuple[int, Mapping[Event, float]]]:
        """The counts of some contexts, or of all, the one seen longest ago first."""
        if chosen is None:
            yield from self._counts.items()
            return
        found = list[int]()
        for context in reversed(self._counts):  # from the latest, since those are the ones that are asked for
            if len(found) == len(chosen):
                break
            if context in chosen:
                found.append(context)
        for context in reversed(found):
            yield context, self._counts[context]

    def put(self, context: int, counts: dict[Event, float]) -> None:
        """Replaces the counts of a context."""
        self._counts.pop(context, None)
        self._counts[context] = counts
        if len(self._counts) > MOST_CONTEXTS:
            del self._counts[next(iter(self._counts))]


def contexts(steps: Sequence[StepLog], stop: int) -> list[int]:
    """Hashes of the events just before position `stop`: the shortest first, and last the longest together with the position."""
    found, known, text = [START], 0, b""
    for depth, seed in _SEEDS:
        while known < min(depth, stop):
            known += 1
            step = steps[stop - known]
            if known == 1:
                found.append(crc32(step.agent.encode(), _AGENT_SEED))
            text += b"%s/%d;" % (step.agent.encode(), step.symbol)
        if known < depth:
            text += b"^"  # the workflow's beginning
        found.append(crc32(text, seed))
        if known < depth:
            break
    found.append(crc32(b"at%d:" % stop + text))
    return found
