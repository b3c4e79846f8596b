"""What one workflow's record and the model say of its next event and of each segment's next use.

Both are kept until the record or the model changes. A forecast changes only the probabilities of the next event, and with them
a few facts of each segment and the contexts that contain these; the larger part of the work stays done.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

from pbkv_cluster.reuse.model.contexts import FIRST_EVENT_CONTEXT, Sums, event_sums, record_sums
from pbkv_cluster.reuse.model.features import TopEvents, relations, segment_facts, top_events, workflow_facts
from pbkv_cluster.reuse.model.hazard import Floats, Table, first_use, hazards_of
from pbkv_cluster.reuse.rank.forecast_blend import Agents, blend, by_agent, top_two_by_agent

if TYPE_CHECKING:
    from pbkv_cluster.reuse.model.access_model import AccessModel
    from pbkv_cluster.reuse.record.segment import Segment
    from pbkv_cluster.reuse.record.workflow_record import WorkflowRecord


class NextEvents:
    """The next event of one workflow by the model; valid until a step begins or the model changes."""

    __slots__ = ("_events", "_model", "_record", "_steps", "_version", "agents")

    def __init__(self, model: AccessModel, record: WorkflowRecord) -> None:
        self._model, self._version = model, model.version
        self._record, self._steps = record, len(record.steps)
        events = model.events.distribution(record.steps)
        self.agents = by_agent(events)  # probability of each agent
        self._events = top_two_by_agent(events)

    @property
    def valid(self) -> bool:
        """Whether no step has begun and the model has not changed since."""
        return self._version == self._model.version and self._steps == len(self._record.steps)

    def top(self, predicted: Agents, share: float) -> TopEvents:
        """The likeliest events.

        Args:
            predicted: agents by a forecast; empty: there is none.
            share: weight of the forecast.
        """
        return top_events(blend(self._events, self.agents, predicted, share) if predicted else self._events)


class NextUse:
    """The next use of some segments of one workflow; valid until its record or the model changes.

    Memory: some 250 bytes a segment.
    """

    __slots__ = ("_changes", "_log_odds", "_model", "_record", "_segments", "_sums", "_version")

    def __init__(
        self, model: AccessModel, record: WorkflowRecord, segments: Sequence[Segment], sums: Sums, log_odds: Table
    ) -> None:
        """See `next_uses`."""
        self._model, self._version = model, model.version
        self._record, self._changes = record, record.changes
        self._segments = segments
        self._sums, self._log_odds = sums, log_odds  # by facts and contexts that follow from the record

    @property
    def valid(self) -> bool:
        """Whether neither the record nor the model has changed since."""
        return self._version == self._model.version and self._changes == self._record.changes

    def probability(self, top: TopEvents) -> Floats:
        """The probability that the next use of each segment falls in each bin, given other likeliest events.

        Shape (segments, bins).
        """
        sums = event_sums(relations(self._record, self._segments, top), [top], [len(self._segments)])
        sums += self._sums
        return first_use(hazards_of(self._log_odds + self._model.hazard.event_log_odds(sums)))


class Question(NamedTuple):
    """Of one workflow, after a step."""

    record: WorkflowRecord  # at least one step has begun
    segments: Sequence[Segment]  # of that record
    top: TopEvents  # the likeliest next events


def next_uses(model: AccessModel, questions: Sequence[Question]) -> Iterator[tuple[NextUse, Floats]]:
    """The next uses of segments of several workflows, and their probabilities; see `NextUse.probability`.

    A numpy call costs as much for the segments of one workflow as for those of some, so all are computed together.
    """
    of_segments, of_relations = list[tuple[int, ...]](), list[int]()
    for record, segments, top in questions:
        of_segments += segment_facts(record, segments)
        of_relations += relations(record, segments, top)
    counts = [len(segments) for _, segments, _ in questions]
    sums = record_sums(of_segments, [workflow_facts(record) for record, _, _ in questions], counts)
    record_part = sums[:, FIRST_EVENT_CONTEXT:].copy()
    sums[:, FIRST_EVENT_CONTEXT:] += event_sums(of_relations, [top for _, _, top in questions], counts)
    log_odds, of_events = model.hazard.log_odds(sums)
    probability = first_use(hazards_of(log_odds + of_events))
    start = 0
    for (record, segments, _), count in zip(questions, counts, strict=True):
        part = slice(start, start + count)
        yield NextUse(model, record, segments, record_part[part], log_odds[part]), probability[part]
        start += count
