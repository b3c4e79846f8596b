"""Spans as Arize Phoenix exports them (JSON or JSON lines), with OpenInference attributes, nested or with dots in their names.

https://github.com/Arize-ai/openinference/blob/main/spec/semantic_conventions.md
"""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from pbkv_cluster.core.errors import InvalidArgument
from pbkv_cluster.simulator.conversion.records import count_of, json_records, seconds_of
from pbkv_cluster.simulator.conversion.span_tree import SpanTree
from pbkv_cluster.simulator.recording.calls import Call, message_text, messages_of
from pbkv_cluster.simulator.traces.problems import RecordProblems, noted
from pbkv_cluster.simulator.traces.step_traces import TraceError

_LLM, _AGENT = "LLM", "AGENT"
_AGENT_ATTRIBUTES = ("agent.name", "graph.node.name", "graph.node.id")


def phoenix(path: Path, problems: RecordProblems | None = None) -> Iterator[Call]:
    """Calls of an export. Workflows are sessions, or else traces; agents are the agent spans around a call, or its own name.

    Raises:
        TraceError: the file cannot be read, or is none.
    """
    tree, sessions = SpanTree(), dict[str, str]()
    unheard = RecordProblems()  # they are told of below
    with noted(unheard):
        for _, record in json_records(path, unheard):
            kind = _kind(record)
            named = next((str(value) for name in _AGENT_ATTRIBUTES if (value := _attribute(record, name))), "")
            tree.add(
                _id(record, "span_id"), str(record.get("parent_id") or ""), named or (_name(record) if kind == _AGENT else "")
            )
            if (session := _attribute(record, "session.id")) and (trace := _id(record, "trace_id")):
                sessions[trace] = str(session)
    for place, record in json_records(path, problems):
        if _kind(record) == _LLM:
            with noted(problems):
                call = _call(place, record)
                agent = tree.agent(_id(record, "span_id"), call.agent)
                yield replace(call, workflow=sessions.get(call.workflow, call.workflow), agent=agent)


def _call(place: str, record: dict[str, Any]) -> Call:
    try:
        messages = messages_of(_unwrapped(_attribute(record, "llm.input_messages")), "llm.input_messages")
        if not messages:
            messages = messages_of(_attribute(record, "input.value"), "input.value")
    except InvalidArgument as error:
        raise TraceError(f"{place}: {error}") from error
    replies = _unwrapped(_attribute(record, "llm.output_messages")) or []
    reply = message_text(replies[0]) if isinstance(replies, list) and replies else _attribute(record, "output.value")
    return Call(
        workflow=_trace(place, record),
        workload=str(_attribute(record, "openinference.project.name") or "phoenix"),
        agent=_name(record),
        messages=messages,
        reply=str(reply) if reply else None,
        prompt_tokens=_tokens(place, record, "llm.token_count.prompt"),
        output_tokens=_tokens(place, record, "llm.token_count.completion"),
        place=place,
        started_s=_time(place, record, "start_time"),
        ended_s=_time(place, record, "end_time"),
    )


def _attribute(record: dict[str, Any], name: str) -> Any:
    """An attribute of a span: as a column, in a flat object, or in nested ones; None if it is absent."""
    if record.get(f"attributes.{name}") is not None:
        return record[f"attributes.{name}"]
    attributes = record.get("attributes")
    if isinstance(attributes, dict) and attributes.get(name) is not None:
        return attributes[name]
    value: Any = attributes
    for part in name.split("."):
        value = value.get(part) if isinstance(value, dict) else None
    return value


def _unwrapped(messages: Any) -> Any:
    """Messages without the prefix "message." or the object `message` around each."""
    if not isinstance(messages, list):
        return messages
    found = []
    for entry in messages:
        inner = entry.get("message", entry) if isinstance(entry, dict) else entry
        if isinstance(inner, dict):
            inner = {name.removeprefix("message."): value for name, value in inner.items()}
        found.append(inner)
    return found


def _kind(record: dict[str, Any]) -> str:
    return str(record.get("span_kind") or _attribute(record, "openinference.span.kind") or "").upper()


def _name(record: dict[str, Any]) -> str:
    return str(record.get("name") or "unknown")


def _trace(place: str, record: dict[str, Any]) -> str:
    if not (trace := _id(record, "trace_id")):
        raise TraceError(f"{place}: context.trace_id: is missing; is this an export of spans?")
    return trace


def _id(record: dict[str, Any], name: str) -> str:
    context = record.get("context")
    inner = context.get(name) if isinstance(context, dict) else None
    return str(inner or record.get(f"context.{name}") or record.get(name) or "")


def _tokens(place: str, record: dict[str, Any], name: str) -> int | None:
    value = _attribute(record, name)
    return None if value is None else count_of(value, place, name)


def _time(place: str, record: dict[str, Any], name: str) -> float | None:
    value = record.get(name)
    return None if value in (None, "") else seconds_of(value, place, name)
