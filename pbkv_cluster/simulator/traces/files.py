"""Reads a trace of any supported format, recognised by the fields of its first line."""

import json
from dataclasses import dataclass
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
    match _kind(path):
        case "requests":
            return Trace(name, tuple(read_sessions(path)))
        case "hash_ids":
            timed = sorted(read_requests(path), key=lambda entry: entry.starts_at)
            return Trace(name, tuple(entry.workflow for entry in timed), tuple(entry.starts_at for entry in timed))
        case "TIMESTAMP":
            raise TraceError(
                f"{path}: has arrival times without prompts; give it as --arrivals, together with a trace of workflows"
            )
        case _:
            return Trace(name, tuple(read_workflows(path)))


def _kind(path: Path) -> str:
    for number, line in read_lines(path):
        try:
            first = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise TraceError(f"{path}, line {number}: not a line of JSON: {error}") from error
        return next((key for key in ("requests", "hash_ids", "TIMESTAMP") if isinstance(first, dict) and key in first), "")
    return ""
