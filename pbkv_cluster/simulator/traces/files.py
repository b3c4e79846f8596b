"""Reads a trace of any supported format, recognised by the fields of its first line."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from pbkv_cluster.simulator.traces.serving_traces import read_requests, read_sessions
from pbkv_cluster.simulator.traces.step_traces import TraceError, TraceWorkflow, read_lines, read_workflows


@dataclass(frozen=True, slots=True)
class Trace:
    """A whole trace."""

    name: str
    workflows: tuple[TraceWorkflow, ...]
    starts_at: tuple[float, ...] | None = None  # arrival time of each workflow in seconds; None: not logged


def load_trace(path: Path) -> Trace:
    """Reads a step trace, coding-agent sessions, or single requests.

    Raises:
        TraceError: the file cannot be read, has none of these formats, or breaks its format.
    """
    name = path.name.split(".")[0]
    if _kind(path) is _Kind.REQUESTS:
        timed = sorted(read_requests(path), key=lambda entry: entry.starts_at)
        return Trace(name, tuple(entry.workflow for entry in timed), tuple(entry.starts_at for entry in timed))
    return Trace(name, tuple(read_trace(path)))


def read_trace(path: Path) -> Iterator[TraceWorkflow]:
    """The workflows of a trace as `load_trace` reads it, one after the other in the order of the file.

    Raises:
        TraceError: as `load_trace` does. Workflows before a line that breaks the format have been returned.
    """
    match _kind(path):
        case _Kind.SESSIONS:
            yield from read_sessions(path)
        case _Kind.REQUESTS:
            for entry in read_requests(path):
                yield entry.workflow
        case _Kind.STEPS:
            yield from read_workflows(path)


class _Kind(Enum):
    STEPS = "step trace"
    SESSIONS = "coding-agent sessions"
    REQUESTS = "chat requests"


_ACCEPTED = (
    "accepted are step traces (workflow_id, workload, step, agent, prompt_segments, …), coding-agent sessions (id, block_size, "
    "requests) and chat requests (timestamp, input_length, output_length, hash_ids), one JSON object in each line"
)
_STEP_FIELDS = frozenset({"workflow_id", "workload", "step", "prompt_segments", "prompt_tokens", "output_id"})
# What traces of others begin with, and what can be done with them.
_FOREIGN = {
    "TIMESTAMP": "arrival times without prompts; give it as --arrivals, together with a trace of workflows",
    "resourceSpans": f"OpenTelemetry spans; send them to `pbkv otel`, or convert them: {_ACCEPTED}",
    "messages": f"conversations as text, without ids of their prompts' parts; {_ACCEPTED}",
    "conversations": f"conversations as text, without ids of their prompts' parts; {_ACCEPTED}",
}


def _kind(path: Path) -> _Kind:
    """What the first line of a file shows."""
    for number, line in read_lines(path):
        try:
            first = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise TraceError(f"{path}, line {number}: not a line of JSON: {error}; {_ACCEPTED}") from error
        if not isinstance(first, dict):
            raise TraceError(f"{path}, line {number}: must be an object; {_ACCEPTED}")
        if "requests" in first:
            return _Kind.SESSIONS
        if "hash_ids" in first:
            return _Kind.REQUESTS
        if _STEP_FIELDS & first.keys():
            return _Kind.STEPS
        for key, what in _FOREIGN.items():
            if key in first:
                raise TraceError(f"{path}: has {what}")
        known = ", ".join(map(repr, list(first)[:8])) or "none"
        raise TraceError(f"{path}, line {number}: is of no known format (its fields are {known}); {_ACCEPTED}")
    return _Kind.STEPS
