"""Exponentially weighted moving averages."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pbkv_cluster.core.ewma import Ewma


def test_the_first_sample_replaces_the_initial_value_and_later_ones_count_by_weight() -> None:
    average = Ewma(0.25, initial=100.0)
    assert average.value == 100.0
    average.add(4.0)
    assert average.value == 4.0
    average.add(8.0)
    assert average.value == 0.75 * 4.0 + 0.25 * 8.0


def test_an_infinite_initial_value_is_forgotten() -> None:
    average = Ewma(0.1, initial=math.inf)
    average.add(1.0)
    assert average.value == 1.0


def test_a_weight_of_one_keeps_the_latest() -> None:
    average = Ewma(1.0, initial=0.0)
    for sample in (3.0, 5.0, 2.0):
        average.add(sample)
        assert average.value == sample


@given(st.floats(0.001, 1.0), st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=50))
def test_it_stays_between_the_smallest_and_the_largest_sample(weight: float, samples: list[float]) -> None:
    average = Ewma(weight, initial=1e9)
    for sample in samples:
        average.add(sample)
    assert min(samples) - 1e-6 <= average.value <= max(samples) + 1e-6


@pytest.mark.parametrize("weight", [0.0, -0.1, 1.1, math.nan])
def test_an_invalid_weight_is_refused(weight: float) -> None:
    with pytest.raises(ValueError, match="weight must be"):
        Ewma(weight, initial=0.0)
