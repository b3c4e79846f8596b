"""Events of workflows, on their way to the predictor."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypedDict, Unpack

from pbkv_cluster.core.clock import Clock
from pbkv_cluster.core.workflow.events import EventKind, WorkflowEvent
from pbkv_cluster.core.workflow.step_graph import StepGraph
from pbkv_cluster.gateway.workflow.open_workflows import OpenWorkflow


class EventFields(TypedDict, total=False):
    """The fields of a `WorkflowEvent` that depend on its kind."""

    agent: str
    call_site: str
    step: int
    parent_step: int | None
    tool: str
    expected_s: float | None
    prompt_tokens: int
    output_tokens: int
    pieces: tuple[int, ...]
    words: tuple[int, ...]
    hidden: bytes
    worker: str
    graph: StepGraph | None


@dataclass(frozen=True, slots=True)
class EventReporter:
    """Numbers and dates the events of workflows."""

    emit: Callable[[WorkflowEvent], None]
    clock: Clock

    def recall_start(self, workflow: OpenWorkflow) -> None:
        """Emits the start of a workflow again, after a restart of the gateway; a predictor that knows it ignores that."""
        self.emit(
            WorkflowEvent(
                kind=EventKind.WORKFLOW_STARTED,
                workflow=workflow.id,
                sequence=0,
                time=workflow.started_at,
                workload=workflow.workload,
                graph=workflow.step_graph,
            )
        )

    def report(self, workflow: OpenWorkflow, kind: EventKind, **fields: Unpack[EventFields]) -> None:
        """Emits the next event of a workflow."""
        self.emit(
            WorkflowEvent(
                kind=kind,
                workflow=workflow.id,
                sequence=workflow.next_event(),
                time=self.clock.wall(),
                workload=workflow.workload,
                **fields,
            )
        )
