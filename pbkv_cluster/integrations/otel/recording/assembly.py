"""Calls of a model from spans that are all there: workflows by conversation or trace, agents by the spans around a call."""

from bisect import bisect_left
from collections.abc import Iterator

from pbkv_cluster.integrations.otel.ancestry import Ancestry
from pbkv_cluster.integrations.otel.reading.spans import Span
from pbkv_cluster.integrations.otel.workflow import UNKNOWN_AGENT
from pbkv_cluster.simulator.recording.calls import Call

_NS = 1e9


def calls_of(spans: list[Span]) -> Iterator[Call]:
    """The calls among some spans, which include all around them, in order of time. A duplicate counts once."""
    ancestry = Ancestry(len(spans) + 1)
    unique = [span for span in spans if ancestry.add(span)]
    conversations: dict[str, str] = {}
    for span in unique:
        if conversation := ancestry.conversation_of(span):
            conversations.setdefault(span.trace, conversation)
    tools: dict[str, list[tuple[int, str]]] = {}  # by trace, in order of time
    for span in sorted((span for span in unique if span.is_tool), key=lambda span: (span.start_ns, span.tool)):
        tools.setdefault(span.trace, []).append((span.start_ns, span.tool))
    steps = sorted(
        (span for span in unique if span.is_step and not ancestry.within_step(span)), key=lambda span: (span.start_ns, span.id)
    )
    after: dict[str, int] = {}  # by trace: end of the step before
    latest: dict[str, Span] = {}
    called: dict[tuple[str, str], str] = {}
    for span in steps:  # the first tool between two steps of a trace is what the workflow waits for
        if (before := latest.get(span.trace)) is not None:
            found = tools.get(span.trace, [])
            first = bisect_left(found, (after[span.trace], ""))
            if first < len(found) and found[first][0] <= span.start_ns:
                called[before.trace, before.id] = found[first][1]
        latest[span.trace], after[span.trace] = span, span.end_ns
    for span in steps:
        yield Call(
            workflow=ancestry.conversation_of(span) or conversations.get(span.trace) or span.trace,
            workload=span.workload,
            agent=ancestry.agent_of(span).name or span.workload or UNKNOWN_AGENT,
            messages=span.messages,
            reply=span.reply or None,
            prompt_tokens=span.prompt_tokens or None,
            output_tokens=span.output_tokens or None,
            started_s=span.start_ns / _NS,
            ended_s=span.end_ns / _NS,
            tool=called.get((span.trace, span.id), ""),
        )
