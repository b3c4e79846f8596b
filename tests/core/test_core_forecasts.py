"""Forecasts in arrays behave like lists of the same objects."""

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pbkv_cluster.core.forecasts.batch import Forecasts
from pbkv_cluster.core.forecasts.forecast import Forecast, StepForecast

SHARE = st.floats(0, 1, width=32)
STEP = st.builds(StepForecast, st.dictionaries(st.sampled_from("abcdefgh"), SHARE, max_size=4), SHARE)
FORECAST = st.builds(
    Forecast,
    workflow=st.text("vw", min_size=1, max_size=3),
    epoch=st.integers(0, 2**64 - 1),
    made_at=st.floats(0, 1e10),
    steps=st.lists(STEP, max_size=3).map(tuple),
    predictability=SHARE,
    step=st.integers(-1, 2**31 - 1),
    ended=st.booleans(),
)
SEVERAL = st.lists(FORECAST, max_size=6)


@given(SEVERAL)
def test_arrays_hold_the_forecasts_that_they_were_made_of(several: Sequence[Forecast]) -> None:
    found = Forecasts.of(several)
    assert len(found) == len(several)
    assert list(found) == several
    assert [found[at] for at in range(-len(several), len(several))] == [*several, *several]
    assert list(found[1:4]) == several[1:4]
    with pytest.raises(IndexError):
        found[len(several)]


@given(SEVERAL, st.data())
def test_taking_some_in_any_order(several: Sequence[Forecast], data: st.DataObject) -> None:
    places = data.draw(st.lists(st.sampled_from(range(len(several))), max_size=9) if several else st.just([]))
    found = Forecasts.of(several).take(places)
    assert list(found) == [several[at] for at in places]
    assert len(found.agent_positions) == sum(len(step.agents) for at in places for step in several[at].steps)


@given(st.lists(SEVERAL, max_size=4))
def test_joining_several_batches(parts: list[list[Forecast]]) -> None:
    found = Forecasts.joined(map(Forecasts.of, parts))
    assert list(found) == [forecast for part in parts for forecast in part]
    assert len(set(found.agent_names)) == len(found.agent_names)


@given(SEVERAL, st.integers(0, 6))
def test_compacting_drops_unused_names(several: Sequence[Forecast], end: int) -> None:
    found = Forecasts.of(several).take(np.arange(len(several))[:end]).compact()
    assert list(found) == several[:end]
    assert set(found.agent_names) == {agent for forecast in several[:end] for step in forecast.steps for agent in step.agents}
