"""Reads traces of serving systems, which log prompts as block ids: coding-agent sessions, single requests, arrival times.

Equal block ids mean equal prefixes, so a run of ids becomes one segment, named after the first. Replies have ids of their own,
because these logs do not say which blocks of a later prompt were once a reply.
"""

import json
from collections.abc import Callable, Iterator
from datetime import datetime
from itertools import islice
from pathlib import Path
from typing import NamedTuple, TypeVar

from pbkv_cluster.simulator.traces.fields import MAX_TOKENS, FieldError, Fields, bounded_list
from pbkv_cluster.simulator.traces.problems import RecordProblems, noted
from pbkv_cluster.simulator.traces.step_traces import (
    MAX_STEPS,
    Segment,
    SegmentKind,
    TraceError,
    TraceStep,
    TraceWorkflow,
    read_lines,
)

SESSION_AGENT = "main"  # makes the requests that no sub-agent makes
REQUEST_AGENT = "user"
REQUEST_BLOCK_TOKENS = 512

_MAX_ID = 2**53
T = TypeVar("T")


class TimedWorkflow(NamedTuple):
    """A workflow and when it arrives, in seconds since the start of the trace."""

    starts_at: float
    workflow: TraceWorkflow


def read_sessions(path: Path) -> Iterator[TraceWorkflow]:
    """Coding-agent sessions, one per line. A sub-agent's requests are nested where the sub-agent was called.

    `hash_ranges` are the blocks of a request's prompt, [first, last] inclusive, of `block_size` tokens each. Block ids are
    local to a session.

    Raises:
        TraceError: the file cannot be read, or a line breaks the format.
    """
    return _parse(path, lambda fields: read_session(fields, path.name.split(".")[0]))


def read_requests(path: Path, problems: RecordProblems | None = None) -> Iterator[TimedWorkflow]:
    """Single requests of a chat service, one per line in order of arrival. Each becomes a workflow of one step.

    `timestamp` is in milliseconds. `hash_ids` are blocks of 512 tokens, with the same ids in the whole file.

    Raises:
        TraceError: the file cannot be read, or a line breaks the format.
    """
    name = path.name.split(".")[0]
    numbered = iter(range(_MAX_ID))
    return _parse(path, lambda fields: read_request(fields, name, next(numbered)), problems)


def read_arrivals(path: Path) -> Iterator[float]:
    """Arrival times of a log with a `TIMESTAMP` per line, in seconds since the first.

    Raises:
        TraceError: the file cannot be read, or a line breaks the format, or goes back in time.
    """
    first: list[datetime] = []
    latest = [0.0]

    def seconds(fields: Fields) -> float:
        text = fields.text("TIMESTAMP")
        try:
            at = datetime.fromisoformat(text[:26])  # logs have one digit more than a datetime can hold
            first.append(at)
            since = (at - first[0]).total_seconds()
        except (ValueError, TypeError) as error:
            raise FieldError("TIMESTAMP", f"must be a date and time, got {text!r}") from error
        if since < latest[0]:
            raise FieldError("TIMESTAMP", f"{text!r} is before the line above")
        latest[0] = since
        del first[1:]
        return since

    return _parse(path, seconds)


def _parse(path: Path, build: Callable[[Fields], T], problems: RecordProblems | None = None) -> Iterator[T]:
    empty = True
    for number, line in read_lines(path):
        empty = False
        with noted(problems):
            yield _built(f"{path}, line {number}", line, build)
    if empty:
        raise TraceError(f"{path}: holds no lines")


def _built(place: str, line: bytes, build: Callable[[Fields], T]) -> T:
    try:
        return build(Fields(json.loads(line)))
    except FieldError as error:
        raise TraceError(f"{place}: {error}") from None
    except (ValueError, RecursionError) as error:
        raise TraceError(f"{place}: not a line of JSON: {error}") from error


def read_session(fields: Fields, workload: str) -> TraceWorkflow:
    """The session of one line.

    Raises:
        FieldError: the line breaks the format.
    """
    name = fields.text("id")
    block = fields.count("block_size", 1 << 16)
    if block == 0:
        raise FieldError("block_size", "must be at least 1")
    requests = list(islice(_flat(fields, SESSION_AGENT), MAX_STEPS + 1))
    if len(requests) > MAX_STEPS:
        raise FieldError("requests", f"must hold at most {MAX_STEPS} requests in all")
    if not requests:
        raise FieldError("requests", "must hold at least one request")
    # A request logs the think time before it; a step has the pause after it.
    pauses = [request.optional_seconds("think_time") for request, _ in requests[1:]]
    steps = tuple(
        _session_step(request, agent, f"{workload}/{name}", position, block, pause)
        for position, ((request, agent), pause) in enumerate(zip(requests, [*pauses, 0.0], strict=True))
    )
    return TraceWorkflow(name, workload, steps)


def _flat(fields: Fields, agent: str) -> Iterator[tuple[Fields, str]]:
    for entry in fields.objects("requests"):
        if "requests" in entry.value:
            yield from _flat(entry, entry.text("subagent_type"))
        else:
            yield entry, agent


def _session_step(fields: Fields, agent: str, prefix: str, position: int, block: int, pause: float) -> TraceStep:
    segments = []
    for first, last in _ranges(fields):
        segments.append(Segment(SegmentKind.HISTORY, f"{prefix}/{first}", (last - first + 1) * block))
    tokens = fields.count("in", MAX_TOKENS)
    rest = tokens - sum(segment.tokens for segment in segments)
    if not 0 <= rest < block:
        raise FieldError(fields.path("in"), f"is {tokens}, but the blocks of hash_ranges hold {tokens - rest}")
    if rest:
        segments.append(Segment(SegmentKind.TASK, f"{prefix}/rest/{position}", rest))
    if not segments:
        raise FieldError(fields.path("in"), "must be at least 1")
    out = fields.count("out", MAX_TOKENS)
    return TraceStep(agent, tuple(segments), f"{prefix}/output/{position}", out, tool=_waits_for(fields), pause_s=pause)


def _waits_for(fields: Fields) -> str:
    """What a session waits for after a request: the user at the end of the agent's turn, else a tool; "" if not logged."""
    stop = fields.optional_text("stop")
    return "user" if stop == "end_turn" else stop


def _ranges(fields: Fields) -> list[tuple[int, int]]:
    found = []
    for position, pair in enumerate(_list(fields, "hash_ranges")):
        name = f"hash_ranges[{position}]"
        if not isinstance(pair, list) or len(pair) != 2:
            raise FieldError(fields.path(name), "must be a pair [first, last]")
        first, last = (_block_id(fields, f"{name}[{at}]", value) for at, value in enumerate(pair))
        if not first <= last < first + MAX_TOKENS:
            raise FieldError(fields.path(name), f"must not go from {first} to {last}")
        found.append((first, last))
    return found


def read_request(fields: Fields, workload: str, number: int) -> TimedWorkflow:
    """The request of one line.

    Raises:
        FieldError: the line breaks the format.
    """
    tokens = fields.count("input_length", MAX_TOKENS)
    ids = _list(fields, "hash_ids")
    full = len(ids) * REQUEST_BLOCK_TOKENS
    if not ids or not full - REQUEST_BLOCK_TOKENS < tokens <= full:
        raise FieldError("hash_ids", f"are {len(ids)} blocks of {REQUEST_BLOCK_TOKENS} tokens, but input_length is {tokens}")
    segments = []
    for position, value in enumerate(ids):
        length = min(REQUEST_BLOCK_TOKENS, tokens - position * REQUEST_BLOCK_TOKENS)
        block = _block_id(fields, f"hash_ids[{position}]", value)
        segments.append(Segment(SegmentKind.HISTORY, f"{workload}/{block}", length))
    name = f"{workload}-{number}"
    out = fields.count("output_length", MAX_TOKENS)
    step = TraceStep(REQUEST_AGENT, tuple(segments), f"{name}/output", out)
    return TimedWorkflow(fields.count("timestamp", _MAX_ID) / 1000, TraceWorkflow(name, workload, (step,)))


def _list(fields: Fields, name: str) -> list[object]:
    value = fields.value.get(name)
    if value is None:
        raise FieldError(fields.path(name), "is missing")
    return bounded_list(fields.path(name), value)


def _block_id(fields: Fields, name: str, value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < _MAX_ID:
        raise FieldError(fields.path(name), "must be the number of a block")
    return value
