"""What happens in workflows, as the predictor sees it."""

from dataclasses import dataclass
from enum import StrEnum

from pbkv_cluster.core.step_graph import StepGraph

MAX_HIDDEN_BYTES = 1024


class EventKind(StrEnum):
    WORKFLOW_STARTED = "workflow_started"
    STEP_STARTED = "step_started"
    STEP_FINISHED = "step_finished"
    STEP_PLACED = "step_placed"  # on a worker that has had none of the workflow's steps before
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
    # Of prompts and outputs an event holds hashes and a projection, no text.
    pieces: tuple[int, ...] = ()  # STEP_STARTED: what the prompt is made of, see `core/pieces.py`
    words: tuple[int, ...] = ()  # see `core/words.py`: of the task in the first STEP_STARTED, of the output in STEP_FINISHED
    hidden: bytes = b""  # STEP_FINISHED: hidden state at the prompt's end, projected, little-endian float16; empty: not known
    worker: str = ""  # STEP_PLACED: its id
    graph: StepGraph | None = None  # WORKFLOW_STARTED: what the client declared
