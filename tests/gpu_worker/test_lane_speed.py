"""What a lane is believed to need for a block, after transfers that were held up and while none is made."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pbkv_cluster.core.clock import ManualClock
from pbkv_cluster.gpu_worker.kv.lanes.lane_speed import TRIAL_AFTER_S, LaneSpeed

FAST, HELD_UP = 1e-4, 0.1  # seconds for a block


def speed_after(clock: ManualClock, *block_s: float) -> LaneSpeed:
    speed = LaneSpeed(clock.now)
    for seconds in block_s:
        clock.advance(1.0)
        speed.add(10, 10 * seconds)
    return speed


@pytest.mark.parametrize("at", range(6))
def test_one_transfer_that_was_held_up_changes_nothing(at: int) -> None:
    block_s = [FAST] * 6
    block_s[at] = HELD_UP
    assert speed_after(ManualClock(), *block_s).block_s == pytest.approx(FAST)
    if at:
        assert speed_after(ManualClock(), *block_s[: at + 1]).block_s == pytest.approx(FAST)


def test_a_lane_that_has_become_slow_is_believed_to_be() -> None:
    assert speed_after(ManualClock(), *[FAST] * 9, *[HELD_UP] * 3).block_s == pytest.approx(HELD_UP)


@given(st.lists(st.floats(1e-6, 10.0), min_size=1, max_size=12))
def test_it_is_believed_to_need_what_it_has_needed_lately(block_s: list[float]) -> None:
    believed, lately = speed_after(ManualClock(), *block_s).block_s, block_s[-5:]
    assert min(lately) * 0.999 <= believed <= max(lately) * 1.001


def test_a_trial_is_due_when_nothing_has_been_copied_for_a_while_and_one_is_enough() -> None:
    clock = ManualClock()
    assert not LaneSpeed(clock.now).needs_trial, "what has never been used need not be tried: it costs nothing yet"
    speed = speed_after(clock, *[HELD_UP] * 5)
    assert not speed.needs_trial
    clock.advance(TRIAL_AFTER_S)
    assert speed.needs_trial
    speed.add(1, FAST)
    assert (speed.needs_trial, speed.block_s) == (False, FAST)


def test_a_lane_that_is_used_rarely_does_not_live_on_its_best_day() -> None:
    clock = ManualClock()
    speed = speed_after(clock, FAST)
    for _ in range(2):
        clock.advance(2 * TRIAL_AFTER_S)
        speed.add(1, HELD_UP)
    assert speed.block_s == HELD_UP
