"""What happens in workflows, as the predictor sees it."""

from dataclasses import dataclass
from enum import StrEnum


class EventKind(StrEnum):
    WORKFLOW_STARTED = "workflow_started"
    STEP_STARTED = "step_started"
    STEP_FINISHED = "step_finished"
    TOOL_STARTED = "tool_started"
    TOOL_FINISHED = "tool_finished"
    WORKFLOW_ENDED = "workflow_ended"


@dataclass(frozen=True, slots=True)
class WorkflowEvent:
    """One event. `sequence` counts a workflow's events from 0, so that duplicates and gaps show."""

    kind: EventKind
    workflow: str
    sequence: int
    time: float  # seconds since the epoch
    workload: str = ""
    agent: str = ""
    call_site: str = ""
    step: int = 0
    parent_step: int | None = None
    tool: str = ""
    expected_s: float | None = None
    prompt_tokens: int = 0
    output_tokens: int = 0
