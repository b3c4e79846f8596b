"""Steps and tool calls of traces, kept until it is known whether the trace belongs to a conversation."""

from collections import OrderedDict

from pbkv_cluster.integrations.otel.reading.spans import Span


class TraceHistory:
    """Remembers a bounded number of spans; beyond it, the trace that began first is forgotten as a whole."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._traces: OrderedDict[str, list[Span]] = OrderedDict()
        self._spans = 0

    def __len__(self) -> int:
        """Number of spans."""
        return self._spans

    def add(self, span: Span) -> None:
        self._traces.setdefault(span.trace, []).append(span)
        self._spans += 1
        while self._spans > self._limit:
            self._spans -= len(self._traces.popitem(last=False)[1])

    def pop(self, trace: str) -> list[Span]:
        """Forgets a trace and returns its spans, in order of arrival; empty if it is not remembered."""
        spans = self._traces.pop(trace, [])
        self._spans -= len(spans)
        return spans
