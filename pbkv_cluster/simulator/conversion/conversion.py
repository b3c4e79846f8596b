"""Writes what a converter reads: steps in the order of time, workflow by workflow."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import TypeVar

from pbkv_cluster.core.checks import MAX_NAME_BYTES
from pbkv_cluster.simulator.recording.calls import Call
from pbkv_cluster.simulator.recording.conversation import steps_of
from pbkv_cluster.simulator.recording.ids import Ids
from pbkv_cluster.simulator.recording.recorder import RecordedStep, Recorder
from pbkv_cluster.simulator.recording.trace_file import TraceFile
from pbkv_cluster.simulator.traces.problems import RecordProblems, noted
from pbkv_cluster.simulator.traces.step_traces import TraceError, TraceWorkflow
from pbkv_cluster.simulator.traces.writing import encoded, line_of

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Converted:
    """What was written."""

    workflows: int
    steps: int
    pseudo_tokens: int  # whose text is unknown
    prompt_tokens: int
    is_full: bool  # the file has no room for the rest


def convert_calls(calls: Iterable[Call], ids: Ids, file: TraceFile, problems: RecordProblems | None = None) -> Converted:
    """Converts calls.

    Args:
        calls: in any order. Their texts are not kept.
        ids: for texts.
        file: to write to.
        problems: of the calls' records; if there are any when all calls have come, nothing is written. What ends the reading
            is one of them.

    Raises:
        TraceError: there are no calls, or there are problems.
    """
    workflows: dict[str, list[tuple[Call, RecordedStep]]] = {}
    for call, step in steps_of(_until_unreadable(calls, problems), ids, problems=problems):
        bare = replace(call, messages=(), reply=None)
        workflows.setdefault(name_of(call.workflow, "workflow"), []).append((bare, step))
    if problems is not None:
        problems.check()
    if not workflows:
        raise TraceError("the file has no call of a model")
    recorder = Recorder(file)
    for steps in workflows.values():
        steps.sort(key=lambda each: each[1].started_s or 0.0)
    for name, steps in sorted(workflows.items(), key=lambda item: item[1][0][1].started_s or 0.0):
        for call, step in steps:
            recorder.step(name, name_of(call.workload, "unnamed"), replace(step, agent=name_of(step.agent, "unknown")))
            if call.tool:
                recorder.tool(name, name_of(call.tool, "tool"))
        recorder.end(name)
    segments = [segment for steps in workflows.values() for _, step in steps for segment in step.prompt]
    return Converted(
        recorder.written,
        recorder.steps,
        sum(segment.tokens for segment in segments if segment.pseudo),
        sum(segment.tokens for segment in segments),
        recorder.full,
    )


def convert_workflows(
    workflows: Iterable[tuple[TraceWorkflow, float | None]], file: TraceFile, problems: RecordProblems
) -> Converted:
    """Writes workflows that have ids already, each with its arrival in seconds. Where the file is full, the rest is but read.

    Raises:
        TraceError: there are problems when all have come, of which what ends the reading is one; some have been written.
    """
    written = steps = tokens = 0
    is_full = False
    for workflow, arrival_s in _until_unreadable(workflows, problems):
        if is_full:
            continue
        timed = replace(workflow, arrival_s=arrival_s)
        if not file.write(workflow.id, b"".join(encoded(line_of(timed, at)) for at in range(len(workflow.steps)))):
            is_full = True
            continue
        written += 1
        steps += len(workflow.steps)
        tokens += sum(step.prompt_tokens for step in workflow.steps)
    problems.check()
    return Converted(written, steps, 0, tokens, is_full)


def _until_unreadable(records: Iterable[T], problems: RecordProblems | None) -> Iterator[T]:
    """The records up to where no more can be read, which is noted as a problem, so that those before it are told, too."""
    with noted(problems):
        yield from records


def name_of(text: str, default: str) -> str:
    """A text as a name: cut to what a name may have."""
    return text.encode(errors="replace")[:MAX_NAME_BYTES].decode(errors="ignore") or default
