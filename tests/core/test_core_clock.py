"""Clocks."""

import pytest

from pbkv_cluster.core.clock import Clock, ManualClock, SystemClock


def test_a_manual_clock_moves_by_hand_only() -> None:
    clock = ManualClock(5.0)
    clock.advance(1.5)
    clock.advance(0)
    assert clock.now() == clock.wall() == 6.5


def test_no_clock_goes_back() -> None:
    with pytest.raises(ValueError, match="must not be negative"):
        ManualClock().advance(-1e-9)
    system: Clock = SystemClock()
    first = system.now()
    assert system.now() >= first
    assert system.wall() > 1.7e9
