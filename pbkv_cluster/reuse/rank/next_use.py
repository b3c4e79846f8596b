"""Where a workflow stands between two of its steps: what follows from its record and the model is found once, and kept.

What is expected next changes with each forecast, and with it some facts of each segment and some of their contexts; the larger
part stays as it is. All of it holds until the record or the model changes, which whoever keeps it has to ask.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from pbkv_cluster.reuse.model.contexts import OPEN, settled_sums
from pbkv_cluster.reuse.model.features import Likeliest, foretold_facts, likeliest, settled_facts
from pbkv_cluster.reuse.model.hazard import Floats, first_use, hazards_of
from pbkv_cluster.reuse.rank.forecast_blend import Agents, blend, by_agent, foremost

if TYPE_CHECKING:
    from pbkv_cluster.reuse.model.access_model import AccessModel
    from pbkv_cluster.reuse.record.segment import Segment
    from pbkv_cluster.reuse.record.workflow_record import WorkflowRecord


class NextUse:
    """Some segments of one workflow, under one state of its record and of the model.

    Memory: some 150 bytes a segment.
    """

    __slots__ = ("_changes", "_events", "_history", "_model", "_segments", "_steady", "_sums", "_version", "agents")

    def __init__(self, model: AccessModel, history: WorkflowRecord, segments: Sequence[Segment]) -> None:
        """Args:
        model: what has been learnt.
        history: of the workflow; at least one step has begun.
        segments: of that history.
        """
        self._model, self._version = model, model.version
        self._history, self._changes = history, history.changes
        self._segments = segments
        events = model.events.distribution(history.steps)
        self.agents = by_agent(events)  # next agent by the model
        self._events = foremost(events)
        sums = settled_sums(settled_facts(history, segments))
        self._steady = model.hazard.steady_log_odds(sums)
        self._sums = sums.take(OPEN, axis=1)

    def holds(self) -> bool:
        """Whether neither the record nor the model has changed since."""
        return self._version == self._model.version and self._changes == self._history.changes

    def likeliest(self, foretold: Agents, share: float) -> Likeliest:
        """What is expected next: by the model, and for that share by a forecast, where it says something."""
        return likeliest(blend(self._events, self.agents, foretold, share) if foretold else self._events)

    def chances(self, expected: Likeliest) -> Floats:
        """The probability that the next use of each segment falls in each bin. Shape (segments, bins)."""
        foretold = foretold_facts(self._history, self._segments, expected)
        return first_use(hazards_of(self._steady + self._model.hazard.open_log_odds(self._sums, foretold)))
