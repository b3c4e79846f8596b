"""Logs of lengths alone: Azure's traces of inference, and BurstGPT. What prompts share cannot be told from them."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pbkv_cluster.simulator.conversion.records import Record, count_of, csv_records, json_records, seconds_of
from pbkv_cluster.simulator.recording.calls import Call
from pbkv_cluster.simulator.traces.problems import RecordProblems, noted
from pbkv_cluster.simulator.traces.step_traces import TraceError


def azure(path: Path, problems: RecordProblems | None = None) -> Iterator[Call]:
    """Azure's LLM inference traces of 2023 and 2024: TIMESTAMP, ContextTokens, GeneratedTokens; CSV, or JSON lines.

    Raises:
        TraceError: the file cannot be read, or is none.
    """
    for number, (place, row) in enumerate(_rows(path, problems)):
        with noted(problems):
            yield Call(
                workflow=f"request-{number}",
                workload="azure",
                agent="user",
                prompt_tokens=count_of(_field(row, place, "ContextTokens"), place, "ContextTokens"),
                output_tokens=count_of(_field(row, place, "GeneratedTokens"), place, "GeneratedTokens"),
                started_s=seconds_of(_field(row, place, "TIMESTAMP"), place, "TIMESTAMP"),
            )


def burstgpt(path: Path, problems: RecordProblems | None = None) -> Iterator[Call]:
    """BurstGPT: Timestamp (s), Model, Request tokens, Response tokens; with `Session ID` and `Elapsed time`, if there are.

    Requests of one session are one workflow.

    Raises:
        TraceError: the file cannot be read, or is none.
    """
    for number, (place, row) in enumerate(csv_records(path)):
        with noted(problems):
            started_s = seconds_of(_number(_field(row, place, "Timestamp")), place, "Timestamp")
            elapsed = _number(row.get("Elapsed time") or 0)
            yield Call(
                workflow=f"session-{session}" if (session := row.get("Session ID")) else f"request-{number}",
                workload=str(row.get("Log Type") or "burstgpt"),
                agent=str(row.get("Model") or "user"),
                prompt_tokens=count_of(_field(row, place, "Request tokens"), place, "Request tokens"),
                output_tokens=count_of(_field(row, place, "Response tokens"), place, "Response tokens"),
                started_s=started_s,
                ended_s=started_s + (seconds_of(elapsed, place, "Elapsed time") if elapsed else 0.0),
            )


def _rows(path: Path, problems: RecordProblems | None) -> Iterator[Record]:
    is_json = path.name.removesuffix(".gz").endswith((".jsonl", ".json"))
    return json_records(path, problems) if is_json else csv_records(path)


def _field(row: dict[str, Any], place: str, name: str) -> Any:
    if row.get(name) in (None, ""):
        raise TraceError(f"{place}: {name}: is missing; the columns are {', '.join(map(repr, list(row)[:10]))}")
    return row[name]


def _number(value: Any) -> Any:
    try:
        return float(value)
    except (TypeError, ValueError):
        return value
