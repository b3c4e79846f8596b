"""What one workflow's record and the model say of its next event and of each segment's next use.

Both are kept until the record or the model changes. A forecast changes only the probabilities of the next event, and with them
a few facts of each segment and the contexts that contain these; the larger part of the work stays done.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from pbkv_cluster.reuse.model.contexts import FIRST_EVENT_CONTEXT, event_sums, record_sums
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

    __slots__ = ("_changes", "_model", "_record", "_record_log_odds", "_segments", "_sums", "_version")

    def __init__(self, model: AccessModel, record: WorkflowRecord, segments: Sequence[Segment]) -> None:
        """Args:
        model: what has been learnt.
        record: of the workflow; at least one step has begun.
        segments: of that record.
        """
        self._model, self._version = model, model.version
        self._record, self._changes = record, record.changes
        self._segments = segments
        self._sums = record_sums(segment_facts(record, segments), workflow_facts(record))
        self._record_log_odds: Table | None = None

    @property
    def valid(self) -> bool:
        """Whether neither the record nor the model has changed since."""
        return self._version == self._model.version and self._changes == self._record.changes

    def probability(self, top: TopEvents) -> Floats:
        """The probability that the next use of each segment falls in each bin, given the likeliest next events.

        Shape (segments, bins).
        """
        of_events, hazard = event_sums(relations(self._record, self._segments, top), top), self._model.hazard
        if self._record_log_odds is None:
            sums = self._sums.copy()
            sums[:, FIRST_EVENT_CONTEXT:] += of_events
            self._record_log_odds, log_odds = hazard.log_odds(sums)
        else:
            log_odds = hazard.event_log_odds(self._sums[:, FIRST_EVENT_CONTEXT:] + of_events)
        return first_use(hazards_of(self._record_log_odds + log_odds))
