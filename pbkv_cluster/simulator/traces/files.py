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
    if kind_of(path) is Kind.REQUESTS:
        timed = sorted(read_requests(path), key=lambda entry: entry.starts_at)
        return Trace(name, tuple(entry.workflow for entry in timed), tuple(entry.starts_at for entry in timed))
    workflows = list(read_trace(path))
    arrivals = [each.arrival_s for each in workflows if each.arrival_s is not None]
    if len(arrivals) < len(workflows):
        return Trace(name, tuple(workflows))
    workflows.sort(key=lambda each: each.arrival_s or 0.0)
    return Trace(name, tuple(workflows), tuple(at - min(arrivals) for at in sorted(arrivals)))


def read_trace(path: Path) -> Iterator[TraceWorkflow]:
    """The workflows of a trace as `load_trace` reads it, one after the other in the order of the file.

    Raises:
        TraceError: as `load_trace` does. Workflows before a line that breaks the format have been returned.
    """
    match kind_of(path):
        case Kind.SESSIONS:
            yield from read_sessions(path)
        case Kind.REQUESTS:
            for entry in read_requests(path):
                yield entry.workflow
        case Kind.STEPS:
            yield from read_workflows(path)


class Kind(Enum):
    """A format of traces."""

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
    "resourceSpans": f"OpenTelemetry spans; send them to `pbkv otel`, or `pbkv trace convert --from otlp` them; {_ACCEPTED}",
    "messages": f"conversations as text; convert them (`pbkv trace convert --from sharegpt`): {_ACCEPTED}",
    "conversations": f"conversations as text; convert them (`pbkv trace convert --from sharegpt`): {_ACCEPTED}",
}


def kind_of(path: Path) -> Kind:
    """The format of a file, by its first line.

    Raises:
        TraceError: it cannot be read, or has none of these formats.
    """
    for number, line in read_lines(path):
        try:
            first = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise TraceError(f"{path}, line {number}: not a line of JSON: {error}; {_ACCEPTED}") from error
        if not isinstance(first, dict):
            raise TraceError(f"{path}, line {number}: must be an object; {_ACCEPTED}")
        if "requests" in first:
            return Kind.SESSIONS
        if "hash_ids" in first:
            return Kind.REQUESTS
        if _STEP_FIELDS & first.keys():
            return Kind.STEPS
        for key, what in _FOREIGN.items():
            if key in first:
                raise TraceError(f"{path}: has {what}")
        known = ", ".join(map(repr, list(first)[:8])) or "none"
        raise TraceError(f"{path}, line {number}: is of no known format (its fields are {known}); {_ACCEPTED}")
    return Kind.STEPS
