"""How long tool calls take, and so how soon a workflow that waits for them goes on.

An announced duration is the best estimate if the client knows its tools. How well it does is measured: calls of each tool are
remembered by their duration and by the ratio of that to the announced one. The one of the two whose logarithm varies less is
used. (TokenCake, arXiv 2510.18586, blends an announced duration with a moving average instead; Continuum, arXiv 2511.02230,
uses measured durations alone.)
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from pbkv_cluster.core.workflow.tool_call import ToolCall
from pbkv_cluster.reuse.model.hazard import Floats
from pbkv_cluster.reuse.rank.durations import Durations, DurationsByName

_FIRST_RATIOS = (0.5, 0.7, 0.85, 1.0, 1.0, 1.2, 1.5, 2.0)  # of actual to announced durations, before any is known
_FIRST_DELAY_S = 0.5  # from the end of the last tool call to the next step
_CALLS_MAX = 64  # of one pause


class ToolWait(NamedTuple):
    """What a workflow waits for now."""

    calls: tuple[tuple[ToolCall, float], ...]  # open ones, each with the seconds since it began
    ended_s: float  # seconds since the last one ended, if none is open


class PauseTools:
    """The tool calls of a workflow's present pause. Times are seconds on the worker's clock."""

    __slots__ = ("_ended_at", "_open")

    def __init__(self) -> None:
        self._open: dict[tuple[str, str], tuple[ToolCall, float]] = {}  # with the time of their begin
        self._ended_at: float | None = None  # when the last one ended, if none is open

    def began(self, call: ToolCall, now: float) -> None:
        """A call has begun. Of too many the oldest is forgotten."""
        self._open[call.tool, call.call_id] = call, now
        self._ended_at = None
        if len(self._open) > _CALLS_MAX:
            del self._open[next(iter(self._open))]

    def ended(self, call: ToolCall, now: float) -> tuple[ToolCall, float] | None:
        """A call has ended. Returns it, as it was announced, with the seconds that it took; None: it is not known."""
        found = self._open.pop((call.tool, call.call_id), None)
        if found is None:
            return None
        if not self._open:
            self._ended_at = now
        return found[0], now - found[1]

    def wait(self, now: float) -> ToolWait | None:
        """What the workflow waits for; None: it has announced nothing."""
        if self._open:
            return ToolWait(tuple((call, now - began) for call, began in self._open.values()), 0.0)
        return None if self._ended_at is None else ToolWait((), now - self._ended_at)


class ToolTiming:
    """Durations of tool calls, by tool."""

    def __init__(self) -> None:
        self._durations = DurationsByName()
        self._ratios, self._all_ratios = DurationsByName(), Durations(_FIRST_RATIOS)
        self._delays = Durations([_FIRST_DELAY_S])

    def add(self, call: ToolCall, seconds: float) -> None:
        """A call took so many seconds."""
        self._durations.add(call.tool, seconds)
        if call.expected_s:
            self._all_ratios.add(seconds / call.expected_s)
            self._ratios.add(call.tool, seconds / call.expected_s)

    def add_delay(self, seconds: float) -> None:
        """A step began so many seconds after the last tool call before it had ended."""
        self._delays.add(seconds)

    def end_probability(self, wait: ToolWait, seconds: Floats, pauses: Durations) -> Floats:
        """Probability that a pause ends within `seconds` more; 0 where these are negative.

        Args:
            wait: what the workflow waits for. Calls are taken to be independent; the pause lasts as long as the longest.
            seconds: of any shape.
            pauses: earlier pauses after the same agent, for tools that are not known.
        """
        if not wait.calls:
            return self._delays.end_probability(seconds, wait.ended_s)
        probability: Floats = np.ones_like(seconds)
        for call, elapsed in wait.calls:
            durations = self._durations.get(call.tool, pauses)
            if call.expected_s:
                ratios = self._ratios.get(call.tool, self._all_ratios)
                if durations is pauses or ratios.log_spread <= durations.log_spread:
                    probability *= ratios.end_probability(seconds / call.expected_s, elapsed / call.expected_s)
                    continue
            probability *= durations.end_probability(seconds, elapsed)
        return probability
