"""Why spans were dropped or not understood: counted by reason, and each cause logged once."""

import logging
from collections import Counter
from enum import StrEnum

log = logging.getLogger(__name__)

_MAX_LOGGED = 32  # different causes of one reason


class Reason(StrEnum):
    """What has been done to a span, a step or a workflow that the application may not expect."""

    SPAN_DUPLICATE = "span_duplicate"
    SPAN_LATE = "span_late"  # it began before its workflow ended, and arrived after that end was emitted
    SPAN_REFUSED = "span_refused"  # too many spans wait, or too many workflows are open
    SPAN_MALFORMED = "span_malformed"  # rejected: an id, a time or a name cannot be used
    OPERATION_UNKNOWN = "operation_unknown"  # no dialect knows the value that says what the span is
    OPERATION_MISSING = "operation_missing"  # it has attributes of generative AI, but none says what it is
    TOKENS_UNREADABLE = "tokens_unreadable"  # a count of tokens is no whole number: the step has none
    TEXT_UNREADABLE = "text_unreadable"  # messages or metadata cannot be read: the step counts without them
    SERVICE_UNKNOWN = "service_unknown"  # the application has not told its name: its workload must be recognised
    AGENT_UNKNOWN = "agent_unknown"  # no span names the step's agent: it has the name of its service
    TRACE_WITHOUT_STEP = "trace_without_step"  # no span of a trace is a model call: nothing is told of it
    WORKFLOW_REASSIGNED = "workflow_reassigned"  # its conversation became known late: its spans were told again, as part of it
    HISTORY_LOST = "history_lost"  # the same, but its first spans were no longer remembered
    WORKFLOW_SILENT = "workflow_silent"  # it had no span for otel.silence_s, and was ended
    WORKFLOW_DROPPED = "workflow_dropped"  # too many are open, and this one was silent for longest: it was ended


# What happens in good order, too.
EXPECTED = (Reason.SPAN_DUPLICATE, Reason.WORKFLOW_SILENT, Reason.WORKFLOW_REASSIGNED)


class Notices:
    """Counts by reason. A log does not grow with the number of spans: a cause is logged when it is first seen."""

    def __init__(self) -> None:
        self.counts: Counter[Reason] = Counter()
        self._logged: dict[Reason, set[str]] = {}

    def note(self, reason: Reason, cause: str = "", count: int = 1) -> None:
        """Counts a reason.

        Args:
            reason: what has happened.
            cause: why, for the log; empty: the reason says it all, and only the count is of interest.
            count: number of spans.
        """
        self.counts[reason] += count
        if not cause:
            return
        logged = self._logged.setdefault(reason, set())
        if cause in logged or len(logged) >= _MAX_LOGGED:
            return
        logged.add(cause)
        last = "; further causes are only counted" if len(logged) == _MAX_LOGGED else ""
        log.warning("%s (logged once%s)", cause, last, extra={"reason": reason.value})

    def summary(self) -> str:
        """The counts of what the application may want to mend; empty if there is nothing."""
        return ", ".join(f"{reason} {count}" for reason, count in sorted(self.counts.items()) if reason not in EXPECTED)
