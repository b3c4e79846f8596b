"""OTLP in JSON, as the file exporter of the OpenTelemetry collector writes it: an export request in each line, or one alone."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pbkv_cluster.core.errors import InvalidArgument
from pbkv_cluster.integrations.otel.otlp_http import JSON, decode
from pbkv_cluster.integrations.otel.reading.spans import Problems, Span, read_spans
from pbkv_cluster.integrations.otel.recording.assembly import calls_of
from pbkv_cluster.simulator.conversion.records import json_records
from pbkv_cluster.simulator.recording.calls import Call
from pbkv_cluster.simulator.traces.problems import RecordProblems, noted
from pbkv_cluster.simulator.traces.step_traces import TraceError


def otlp_calls(path: Path, problems: RecordProblems | None = None) -> Iterator[Call]:
    """The calls of a file.

    Raises:
        TraceError: it cannot be read, is none, or has spans that are malformed.
    """
    spans: list[Span] = []
    for place, record in json_records(path, problems):
        with noted(problems):
            spans.extend(_spans(place, record))
    yield from calls_of(spans)


def _spans(place: str, record: dict[str, Any]) -> list[Span]:
    if "resourceSpans" not in record and "resource_spans" not in record:
        raise TraceError(f"{place}: resourceSpans: is missing; is this OTLP in JSON?")
    problems = Problems()
    try:
        request = decode(JSON, json.dumps(record).encode())
    except InvalidArgument as error:
        raise TraceError(f"{place}: {error}") from error
    spans = list(read_spans(request, problems, with_text=True))
    if problems.rejected:
        raise TraceError(f"{place}: {problems.rejected} spans are malformed: {'; '.join(problems.messages)}")
    return spans
