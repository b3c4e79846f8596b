"""The events of recorded workflows, as a gateway reports them to the predictor."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace

from pbkv_cluster.core.text.prompt_pieces import prompt_pieces
from pbkv_cluster.core.workflow.events import EventKind, WorkflowEvent
from pbkv_cluster.simulator.traces.step_traces import TraceWorkflow
from pbkv_cluster.simulator.workload.prompts import PromptBuilder

VOCAB = 1 << 16  # size of the vocabulary of rebuilt tokens

Pieces = Callable[[int], tuple[int, ...]]
"""The pieces of a workflow's prompts, by position."""


def no_pieces(position: int) -> tuple[int, ...]:
    return ()


def event_of(workflow: TraceWorkflow, name: str, number: int, time: float, pieces: Pieces = no_pieces) -> WorkflowEvent:
    """One event of a workflow whose steps run one after the other.

    Args:
        workflow: the recorded workflow.
        name: id of the workflow in the event.
        number: of the event, from 0: the workflow's start, start and end of each step, the workflow's end.
        time: of the event, in seconds.
        pieces: called at the start of a step.
    """
    if number == 0:
        return WorkflowEvent(EventKind.WORKFLOW_STARTED, name, number, time, workflow.workload)
    position, finished = divmod(number - 1, 2)
    if position == len(workflow.steps):
        return WorkflowEvent(EventKind.WORKFLOW_ENDED, name, number, time, workflow.workload)
    step = workflow.steps[position]
    return WorkflowEvent(
        EventKind.STEP_FINISHED if finished else EventKind.STEP_STARTED,
        name,
        number,
        time,
        workflow.workload,
        step.agent,
        step.call_site,
        position,
        parent_step=position - 1 if position else None,
        prompt_tokens=step.prompt_tokens,
        output_tokens=max(1, step.output_tokens) if finished else 0,  # every reply has at least one token
        pieces=() if finished else pieces(position),
        words=step.words if finished else step.task_words,
    )


def events_of(workflow: TraceWorkflow, name: str, prompts: PromptBuilder | None = None) -> list[WorkflowEvent]:
    """All events of a workflow, one second apart.

    Args:
        workflow: the recorded workflow.
        name: id of the workflow in the events.
        prompts: rebuilds prompts for their pieces; None leaves the pieces out.
    """

    def pieces(position: int) -> tuple[int, ...]:
        return () if prompts is None else prompt_pieces(prompts.prompt(workflow.steps[position]))

    return [event_of(workflow, name, number, float(number), pieces) for number in range(2 * len(workflow.steps) + 2)]


def without_words(events: Iterable[WorkflowEvent]) -> Iterator[WorkflowEvent]:
    """The same events without words of tasks and outputs, and without hidden states."""
    return (replace(event, words=(), hidden=b"") for event in events)


def without_pieces(events: Iterable[WorkflowEvent]) -> Iterator[WorkflowEvent]:
    """The same events without pieces of prompts."""
    return (replace(event, pieces=()) for event in events)


def without_counts(events: Iterable[WorkflowEvent]) -> Iterator[WorkflowEvent]:
    """The same events without token counts of prompts and outputs."""
    return (replace(event, prompt_tokens=0, output_tokens=0) for event in events)


def without_text(events: Iterable[WorkflowEvent]) -> Iterator[WorkflowEvent]:
    """The same events with nothing derived from text: only agents are left."""
    return without_counts(without_pieces(without_words(events)))
