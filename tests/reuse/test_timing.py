"""Pauses and durations: against the empirical distribution, and how they make steps come."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pbkv_cluster.core.workflow.tool_call import ToolCall
from pbkv_cluster.reuse.model.hazard import BINS, Floats
from pbkv_cluster.reuse.rank.durations import Durations
from pbkv_cluster.reuse.rank.timing import HORIZONS, Phase, Timing
from pbkv_cluster.reuse.rank.tool_timing import ToolWait

PRIOR, KEPT, ENOUGH = 2.0, 200, 8
seconds = st.integers(0, 4000).map(lambda quarter: quarter / 4)  # exact: sums do not depend on their order
durations = st.lists(seconds, min_size=1, max_size=40)


def of(values: list[float]) -> Durations:
    found = Durations()
    for value in values:
        found.add(value)
    return found


def arrival(timing: Timing, agent: str, running: bool, elapsed: float) -> Floats:
    found: Floats
    (found,) = timing.arrival([Phase(agent, running, elapsed)])
    return found


@given(durations, seconds, st.lists(seconds, min_size=1, max_size=8))
def test_it_is_the_empirical_distribution_up_to_its_prior(values: list[float], elapsed: float, horizons: list[float]) -> None:
    found = of(values).end_probability(np.array(horizons), elapsed)
    rest = [value for value in values if value > elapsed]
    for horizon, chance in zip(horizons, found, strict=True):
        over = sum(value <= elapsed + horizon for value in rest)
        if horizon == 0.0:
            assert chance == 0.0
        else:
            assert over / (len(rest) + PRIOR) <= chance <= (over + PRIOR) / (len(rest) + PRIOR)


@given(durations, seconds, st.lists(st.floats(-100.0, 1000.0), min_size=2, max_size=10))
def test_it_grows_with_the_horizon(values: list[float], elapsed: float, horizons: list[float]) -> None:
    found = of(values).end_probability(np.array(sorted(horizons)), elapsed)
    assert (np.diff(found) >= -1e-12).all()
    assert ((found >= 0.0) & (found <= 1.0)).all()


@pytest.mark.parametrize("elapsed", [0.0, 100.0, 999.0])
def test_only_the_latest_count(elapsed: float) -> None:
    values = np.random.default_rng(0).integers(0, 1000, 3 * KEPT).astype(float).tolist()
    all_, latest = of(values), of(values[-KEPT:])
    assert len(all_) == len(latest) == KEPT
    assert all_.mean == pytest.approx(np.mean(values[-KEPT:]))
    assert (all_.end_probability(HORIZONS, elapsed) == latest.end_probability(HORIZONS, elapsed)).all()


@given(st.lists(st.tuples(st.sampled_from("ab"), seconds, seconds), max_size=30), st.booleans(), seconds)
def test_later_steps_come_later(measured: list[tuple[str, float, float]], running: bool, elapsed: float) -> None:
    timing = Timing()
    for agent, pause, run in measured:
        timing.add_pause(agent, pause)
        timing.add_run(agent, run)
    found = arrival(timing, "a", running, elapsed)
    assert found.shape == (BINS, len(HORIZONS))
    assert ((found >= 0.0) & (found <= 1.0)).all()
    assert (np.diff(found, axis=0) <= 1e-12).all(), "a later step has begun less likely"
    assert (np.diff(found, axis=1) >= -1e-12).all(), "and more likely by a later time"


calls = st.builds(ToolCall, st.sampled_from(["x", "y"]), expected_s=st.none() | seconds)
waits = st.builds(ToolWait, st.lists(st.tuples(calls, seconds), max_size=2).map(tuple), seconds)
phases = st.lists(st.builds(Phase, st.sampled_from("abc"), st.booleans(), seconds, st.none() | waits), min_size=1, max_size=6)


@given(st.lists(st.tuples(st.sampled_from("ab"), seconds, seconds), max_size=30), phases)
def test_workflows_together_are_as_each_alone(measured: list[tuple[str, float, float]], asked: list[Phase]) -> None:
    timing = Timing()
    for agent, pause, run in measured:
        timing.add_pause(agent, pause)
        timing.add_run(agent, run)
    for phase, found in zip(asked, timing.arrival(asked), strict=True):
        (alone,) = timing.arrival([phase])
        assert (found == alone).all()


def test_an_agent_is_like_all_until_enough_is_known_of_it() -> None:
    timing = Timing()
    for _ in range(50):
        timing.add_pause("slow", 300.0)
    for _ in range(ENOUGH - 1):
        timing.add_pause("quick", 1.0)
    assert (arrival(timing, "quick", False, 0.0) == arrival(timing, "unknown", False, 0.0)).all()
    timing.add_pause("quick", 1.0)
    at_2 = HORIZONS.searchsorted(2.0)
    assert arrival(timing, "quick", False, 0.0)[0, at_2] > 0.8
    assert arrival(timing, "slow", False, 0.0)[0, at_2] < 0.1


def test_a_running_step_comes_before_the_pause_behind_it() -> None:
    timing = Timing()
    for _ in range(50):
        timing.add_pause("a", 10.0)
        timing.add_run("a", 20.0)
    at_15, at_40 = HORIZONS.searchsorted([15.0, 40.0])
    pausing, begun, nearly_over = (arrival(timing, "a", *state)[0] for state in ((False, 0.0), (True, 0.0), (True, 19.0)))
    assert pausing[at_15] > 0.9
    assert begun[at_15] < 0.1 < 0.9 < begun[at_40]
    assert nearly_over[at_15] > 0.9
    assert timing.cycle == pytest.approx(30.0, rel=0.05)


def test_a_pause_that_has_lasted_is_measured_by_those_that_lasted_longer() -> None:
    timing = Timing()
    for pause in [1.0] * 60 + [100.0] * 40:
        timing.add_pause("a", pause)
    at_2 = HORIZONS.searchsorted(2.0)
    assert arrival(timing, "a", False, 0.0)[0, at_2] == pytest.approx(0.6, abs=0.03)
    assert arrival(timing, "a", False, 5.0)[0, at_2] < 0.05
    assert arrival(timing, "a", False, 99.0)[0, at_2] > 0.9
