"""Workflow events: what the predictor is told."""

from dataclasses import dataclass
from enum import StrEnum

from pbkv_cluster.core.workflow.step_graph import StepGraph

MAX_HIDDEN_BYTES = 1024


class EventKind(StrEnum):
    """What has happened."""

    WORKFLOW_STARTED = "workflow_started"
    STEP_STARTED = "step_started"
    STEP_FINISHED = "step_finished"
    STEP_PLACED = "step_placed"  # on a worker that has not run a step of the workflow before
    TOOL_STARTED = "tool_started"
    TOOL_FINISHED = "tool_finished"
    WORKFLOW_ENDED = "workflow_ended"


@dataclass(frozen=True, slots=True)
class WorkflowEvent:
    """One event of one workflow.

    Prompts and outputs are in it as hashes and as a projection, never as text.
    """

    kind: EventKind
    workflow: str
    sequence: int  # counts the workflow's events from 0, so that duplicates and gaps can be seen
    time: float  # seconds since 1970
    workload: str = ""
    agent: str = ""
    call_site: str = ""
    step: int = 0
    parent_step: int | None = None
    tool: str = ""
    expected_s: float | None = None
    prompt_tokens: int = 0
    output_tokens: int = 0
    pieces: tuple[int, ...] = ()  # STEP_STARTED: of the prompt, see `core/text/prompt_pieces.py`
    words: tuple[int, ...] = ()  # first STEP_STARTED: of the task; STEP_FINISHED: of the output; see `core/text/words.py`
    hidden: bytes = b""  # STEP_FINISHED: projected hidden state at the prompt's end, little-endian float16; empty: unknown
    worker: str = ""  # STEP_PLACED: the worker's id
    graph: StepGraph | None = None  # WORKFLOW_STARTED: what the client declared
