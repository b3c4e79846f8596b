"""Observations as Langfuse exports them (JSON, JSON lines or CSV), with names in camelCase or snake_case.

https://langfuse.com/docs/observability/data-model: a generation is a call of a model, in a trace that may be part of a session.
"""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from pbkv_cluster.core.errors import InvalidArgument
from pbkv_cluster.simulator.conversion.records import Record, count_of, csv_records, json_records, seconds_of
from pbkv_cluster.simulator.conversion.span_tree import SpanTree
from pbkv_cluster.simulator.recording.calls import Call, message_text, messages_of, tool_names
from pbkv_cluster.simulator.traces.problems import RecordProblems, noted
from pbkv_cluster.simulator.traces.step_traces import TraceError

_GENERATION, _AGENT = "GENERATION", "AGENT"
_AGENT_METADATA = ("agent", "agent_name", "langgraph_node")


def langfuse(path: Path, problems: RecordProblems | None = None) -> Iterator[Call]:
    """Calls of an export. Workflows are sessions, or else traces. Agents are the observations of that type around a generation,
    or what metadata name, or go by the generation's name.

    Raises:
        TraceError: the file cannot be read, or is none.
    """
    tree, sessions = SpanTree(), dict[str, str]()
    unheard = RecordProblems()  # they are told of below
    with noted(unheard):
        for _, record in _observations(path, unheard):
            metadata = _decoded(record.get("metadata"))
            named = next((str(metadata[name]) for name in _AGENT_METADATA if metadata.get(name)), "")
            agent = named or (str(record.get("name") or "") if record.get("type") == _AGENT else "")
            tree.add(_text(record, "id"), _text(record, "parentObservationId", "parent_observation_id"), agent)
            if session := _text(record, "sessionId", "session_id"):
                sessions[_text(record, "traceId", "trace_id")] = session
    for place, record in _observations(path, problems):
        if record.get("type") != _GENERATION:
            continue
        with noted(problems):
            call = _call(place, record)
            agent = tree.agent(_text(record, "id"), call.agent)
            yield replace(call, workflow=sessions.get(call.workflow, call.workflow), agent=agent)


def _observations(path: Path, problems: RecordProblems | None) -> Iterator[Record]:
    is_csv = path.name.removesuffix(".gz").endswith(".csv")
    for place, record in csv_records(path) if is_csv else json_records(path, problems):
        nested = record.get("observations")
        if not isinstance(nested, list):
            yield Record(place, record)
            continue
        for entry in nested:  # an export of traces
            if isinstance(entry, dict):
                own = {"traceId": record.get("id"), "sessionId": record.get("sessionId"), "traceName": record.get("name")}
                yield Record(place, own | entry)


def _call(place: str, record: dict[str, Any]) -> Call:
    trace = _text(record, "traceId", "trace_id")
    if not trace:
        raise TraceError(f"{place}: traceId: is missing; is this an export of observations?")
    start, end = _first(record, "startTime", "start_time"), _first(record, "endTime", "end_time")
    output = _decoded(record.get("output"), whole=True)
    usage = {**_decoded(record.get("usage")), **_decoded(_first(record, "usageDetails", "usage_details"))}
    try:
        messages = messages_of(record.get("input"), "input")
    except InvalidArgument as error:
        raise TraceError(f"{place}: {error}") from error
    return Call(
        workflow=trace,
        workload=_text(record, "traceName", "trace_name") or "langfuse",
        agent=_text(record, "name") or "unknown",
        messages=messages,
        reply=message_text(output) if output else None,
        prompt_tokens=_tokens(place, usage, record, "input", "promptTokens", "prompt_tokens", "inputUsage"),
        output_tokens=_tokens(place, usage, record, "output", "completionTokens", "completion_tokens", "outputUsage"),
        place=place,
        started_s=None if start is None else seconds_of(start, place, "startTime"),
        ended_s=None if end is None else seconds_of(end, place, "endTime"),
        tool=next(tool_names(output), ""),
    )


def _tokens(place: str, usage: dict[str, Any], record: dict[str, Any], of_usage: str, *of_record: str) -> int | None:
    if usage.get(of_usage) is not None:
        return count_of(usage[of_usage], place, f"usage.{of_usage}")
    value = _first({**record, **usage}, *of_record)
    return None if value is None else count_of(value, place, of_record[0])


def _decoded(value: Any, whole: bool = False) -> Any:
    """A value that may be written as JSON in a text; an object, unless it is wanted as a whole."""
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            return value if whole else {}
    return value if whole or isinstance(value, dict) else {}


def _text(record: dict[str, Any], *names: str) -> str:
    value = _first(record, *names)
    return "" if value is None else str(value)


def _first(record: dict[str, Any], *names: str) -> Any:
    return next((record[name] for name in names if record.get(name) not in (None, "")), None)
