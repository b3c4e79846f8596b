"""Tool calls: which of announced and measured durations is believed, and what a workflow waits for."""

import random

import numpy as np
import pytest

from pbkv_cluster.core.errors import InvalidArgument
from pbkv_cluster.core.workflow.tool_call import ToolCall
from pbkv_cluster.reuse.model.hazard import Floats
from pbkv_cluster.reuse.rank.durations import Durations
from pbkv_cluster.reuse.rank.tool_timing import PauseTools, ToolTiming, ToolWait

PAUSES = Durations([10.0] * 20)  # after the agent
AT = np.array([1.0, 30.0, 100.0])


def taught(error: float, spread: float) -> ToolTiming:
    """A tool that takes from some 6 to some 300 s, announced with a log-normal error."""
    draws, timing = random.Random(1), ToolTiming()
    for _ in range(100):
        seconds = 40.0 * draws.lognormvariate(0.0, spread)
        timing.add(ToolCall("tests", expected_s=seconds * draws.lognormvariate(0.0, error)), seconds)
    return timing


def ends(timing: ToolTiming, expected_s: float | None, elapsed: float = 0.0) -> Floats:
    return timing.end_probability(ToolWait(((ToolCall("tests", expected_s=expected_s), elapsed),), 0.0), AT, PAUSES)


def test_an_announced_duration_is_believed_as_far_as_announcements_were_right() -> None:
    right, wrong = taught(0.1, 1.0), taught(2.0, 0.3)
    assert ends(right, 60.0)[1] < 0.1 < 0.9 < ends(right, 60.0)[2]
    assert ends(right, 0.9)[0] > 0.5
    assert ends(wrong, 0.9) == pytest.approx(ends(wrong, None)), "measured durations vary less than announced ones err"
    assert ends(wrong, 0.9)[0] < 0.1 < 0.9 < ends(wrong, 0.9)[2]


def test_time_that_has_passed_counts() -> None:
    timing = taught(0.1, 1.0)
    assert ends(timing, 60.0, elapsed=55.0)[1] > 0.9 > 0.1 > ends(timing, 60.0)[1]


def test_an_unknown_tool_is_taken_for_what_it_announces_or_else_for_a_pause_like_others() -> None:
    timing = ToolTiming()
    assert ends(timing, 60.0)[1] < 0.3 < 0.8 < ends(timing, 60.0)[2]
    assert ends(timing, None) == pytest.approx(PAUSES.end_probability(AT, 0.0))


def test_a_pause_lasts_as_long_as_the_longest_call() -> None:
    timing = taught(0.1, 1.0)
    short, long = (ToolCall("tests", name, seconds) for name, seconds in (("1", 0.9), ("2", 60.0)))
    together = timing.end_probability(ToolWait(((short, 0.0), (long, 0.0)), 0.0), AT, PAUSES)
    assert together == pytest.approx(ends(timing, 0.9) * ends(timing, 60.0))


def test_after_its_last_call_a_workflow_goes_on_soon() -> None:
    timing = ToolTiming()
    for _ in range(50):
        timing.add_delay(0.2)
    assert timing.end_probability(ToolWait((), 0.0), AT, PAUSES)[0] > 0.9


def test_a_workflow_waits_for_calls_that_have_begun_and_not_ended() -> None:
    tools, first, second = PauseTools(), ToolCall("tests", "1", 5.0), ToolCall("tests", "2")
    assert tools.wait(0.0) is None
    assert tools.ended(first, 0.0) is None, "it was not announced"
    tools.began(first, 1.0)
    tools.began(second, 2.0)
    assert tools.wait(4.0) == ToolWait(((first, 3.0), (second, 2.0)), 0.0)
    assert tools.ended(ToolCall("tests", "1"), 5.0) == (first, 4.0), "as it was announced"
    assert tools.wait(6.0) == ToolWait(((second, 4.0),), 0.0)
    assert tools.ended(second, 7.0) == (second, 5.0)
    assert tools.wait(7.5) == ToolWait((), 0.5)


def test_the_calls_of_a_pause_are_bounded_and_the_latest_are_kept() -> None:
    tools = PauseTools()
    for number in range(1000):
        tools.began(ToolCall("tests", str(number)), float(number))
    wait = tools.wait(1000.0)
    assert wait is not None
    assert len(wait.calls) <= 64
    assert wait.calls[-1] == (ToolCall("tests", "999"), 1.0)


@pytest.mark.parametrize(
    ("field", "make"),
    [
        ("tool", lambda: ToolCall("")),
        ("tool", lambda: ToolCall("x" * 257)),
        ("call_id", lambda: ToolCall("tests", "x" * 257)),
        ("expected_s", lambda: ToolCall("tests", expected_s=-1.0)),
        ("expected_s", lambda: ToolCall("tests", expected_s=float("nan"))),
    ],
)
def test_a_wrong_field_is_named(field: str, make: object) -> None:
    with pytest.raises(InvalidArgument, match=field):
        make()  # type: ignore[operator]
