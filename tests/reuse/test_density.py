"""Hit density against its formula, by brute force."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pbkv_cluster.reuse.model.hazard import Floats
from pbkv_cluster.reuse.rank import density
from pbkv_cluster.reuse.rank.timing import HORIZONS

SLICES = 400
survivals = st.lists(st.floats(0.0, 1.0), min_size=len(HORIZONS), max_size=len(HORIZONS)).map(
    lambda values: np.array(sorted(values, reverse=True))
)

OVERHEAD = 2.0


def hit_density(unused: Floats) -> float:
    return float(density.hit_density(unused, OVERHEAD))


def brute(unused: Floats) -> float:
    """The best over all horizons, with an integral of many slices over a line through what is known."""
    best = 0.0
    for horizon, still in zip(HORIZONS, unused, strict=True):
        edges = np.union1d(np.linspace(0.0, horizon, SLICES), HORIZONS[horizon >= HORIZONS])
        line = np.interp(edges, [0.0, *HORIZONS], [1.0, *unused])
        waited = sum(np.diff(edges) * (line[1:] + line[:-1]) / 2)
        best = max(best, float((1.0 - still) / (waited + OVERHEAD)))
    return best


@given(survivals)
def test_it_is_the_formula(unused: Floats) -> None:
    assert hit_density(unused) == pytest.approx(brute(unused), rel=1e-9, abs=1e-12)


@given(survivals, survivals)
def test_what_is_used_sooner_is_worth_more(one: Floats, other: Floats) -> None:
    sooner = np.minimum(one, other)
    assert hit_density(sooner) >= max(hit_density(one), hit_density(other)) * (1.0 - 1e-12)


@given(survivals)
def test_nothing_is_worth_more_than_what_is_used_at_once(unused: Floats) -> None:
    assert 0.0 <= hit_density(unused) <= hit_density(np.zeros(len(HORIZONS)))


def test_a_use_at_each_horizon_is_worth_less_than_at_the_one_before() -> None:
    worth = [hit_density((horizon > HORIZONS).astype(float)) for horizon in HORIZONS]
    assert worth == sorted(worth, reverse=True)
    assert len(set(worth)) == len(worth)
    assert hit_density(np.ones(len(HORIZONS))) == 0.0


def test_a_likely_use_soon_counts_even_if_none_may_come_for_long() -> None:
    """The best time to give up is before the doubt."""
    soon = np.where(HORIZONS >= 1.0, 0.5, 1.0)
    assert hit_density(soon) > 0.1
    late = np.where(HORIZONS >= 360.0, 0.0, 1.0)
    assert hit_density(soon) > 10 * hit_density(late)
