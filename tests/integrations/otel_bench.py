"""A collector under test, its clock, and what it has emitted."""

from collections.abc import Iterable

from pbkv_cluster.core.clock import ManualClock
from pbkv_cluster.core.config import OtelConfig
from pbkv_cluster.core.workflow.events import EventKind, WorkflowEvent
from pbkv_cluster.integrations.otel.collector import SpanCollector
from pbkv_cluster.integrations.otel.reading.spans import Span

REORDER_S, PARENT_S, SILENCE_S = 2.0, 10.0, 600.0

STARTED, ENDED = EventKind.WORKFLOW_STARTED, EventKind.WORKFLOW_ENDED
STEP, DONE = EventKind.STEP_STARTED, EventKind.STEP_FINISHED
TOOL, TOOL_DONE = EventKind.TOOL_STARTED, EventKind.TOOL_FINISHED


class Bench:
    """A collector, its clock, and all events that it has emitted."""

    def __init__(self, **limits: int) -> None:
        config = OtelConfig(reorder_s=REORDER_S, parent_wait_s=PARENT_S, silence_s=SILENCE_S, **limits)
        self.clock = ManualClock(1e6)
        self.collector = SpanCollector(config, self.clock)
        self.events: list[WorkflowEvent] = []

    def add(self, *spans: Span) -> None:
        for each in spans:
            assert self.collector.add(each) == ""

    def wait(self, seconds: float) -> list[WorkflowEvent]:
        """Lets time pass and returns the events that are emitted."""
        self.clock.advance(seconds)
        new = list(self.collector.release())
        self.events += new
        return new


def kinds(events: Iterable[WorkflowEvent]) -> list[tuple[EventKind, str]]:
    return [(event.kind, event.tool or event.agent) for event in events]
