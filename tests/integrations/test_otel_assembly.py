"""Which tool a workflow waits for after a call: the first that begins between the call's end and the next one's start."""

from pbkv_cluster.integrations.otel.recording.assembly import calls_of
from tests.integrations.otel_spans import span


def test_the_first_tool_between_two_calls_of_a_trace_counts() -> None:
    spans = [
        span(1, 1, 10, "chat"),
        span(2, 5, 6, "execute_tool", tool_name="during"),
        span(3, 12, 13, "execute_tool", tool_name="second"),
        span(4, 10, 14, "execute_tool", tool_name="first"),
        span(5, 11, 12, "execute_tool", trace=9, tool_name="elsewhere"),
        span(6, 20, 30, "chat"),
        span(7, 45, 46, "execute_tool", tool_name="late"),
        span(8, 30.5, 40, "chat"),
        span(9, 50, 51, "chat"),
    ]
    assert [call.tool for call in calls_of(spans)] == ["first", "", "late", ""]
    assert list(calls_of(spans[::-1])) == list(calls_of(spans))
