"""KV hints: their contents, and writing and reading them."""

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pbkv_cluster.core.errors import InvalidArgument
from pbkv_cluster.core.forecasts.forecast import Forecast, StepForecast
from pbkv_cluster.integrations.kv_hints import HintMaker, forecast_of, from_json, from_msgpack, to_json, to_msgpack

FORECAST = Forecast(
    "w",
    epoch=7,
    made_at=100.0,
    steps=(StepForecast({"a": 0.75, "b": 0.25}, 0.8), StepForecast({"b": 1.0}, 0.5)),
    predictability=0.25,
    step=3,
)
MAKER = HintMaker(gamma=0.5, half_life_s=60.0)
VALID: dict[str, Any] = {"protocol_version": "0.1", "message_id": "m", "actions": []}
ACTION: dict[str, Any] = {"action_id": "1", "action_type": "retain", "action_version": "1.0", "payload": {}}


def test_scores_computed_by_hand() -> None:
    retain, prefetch = MAKER.envelope(FORECAST).actions
    assert retain.action_type == "retain"
    assert retain.payload["kind"] == "signal"
    whole = 1 + 0.5
    assert retain.payload["priority"] == pytest.approx((0.8 + 0.5 * 0.5) / whole, abs=1e-6)
    assert retain.payload["reuse"] == {
        "b": pytest.approx((0.8 * 0.25 + 0.5 * 0.5) / whole, abs=1e-6),
        "a": pytest.approx(0.8 * 0.75 / whole, abs=1e-6),
    }
    assert list(retain.payload["reuse"]) == ["a", "b"]
    assert retain.payload["steps"][1] == {"survival": 0.5, "agents": {"b": 1.0}}
    assert (retain.payload["predictability"], retain.payload["after_step"]) == (0.25, 3)
    assert prefetch.action_type == "prefetch"
    assert prefetch.payload["kind"] == "command"
    assert (prefetch.payload["agent"], prefetch.payload["probability"]) == ("a", pytest.approx(0.6))
    for action in (retain, prefetch):
        assert (action.payload["session_id"], action.payload["epoch"]) == ("w", 7)
        assert (action.payload["ttl_s"], action.payload["expires_at_s"]) == (60.0, 160.0)


def test_an_ended_workflow_is_demoted() -> None:
    (demote,) = MAKER.envelope(Forecast("w", 8, 1.0, (), ended=True)).actions
    assert demote.action_type == "demote"
    assert demote.payload["priority"] == 0.0
    assert "expires_at_s" not in demote.payload


def test_prefetch_is_conservative() -> None:
    kinds = [action.action_type for action in HintMaker(prefetch_probability=0.61).envelope(FORECAST).actions]
    assert kinds == ["retain"]
    assert len(HintMaker().envelope(Forecast("w", 1, 0.0, ())).actions) == 1


def test_the_example_in_the_documentation() -> None:
    steps = (StepForecast({"writer": 0.8, "planner": 0.2}, 0.9), StepForecast({"planner": 1.0}, 0.6))
    forecast = Forecast("trip-17", 1764000000000001, 1764000000.5, steps, predictability=0.75, step=3)
    text = (Path(__file__).parents[2] / "docs" / "integrations.md").read_text()
    (example,) = re.findall(r"<!-- example -->\n```json\n(.*?)```", text, re.DOTALL)
    assert from_json(example) == HintMaker().envelope(forecast)


names = st.text(st.characters(exclude_categories=("C", "Z")), min_size=1, max_size=20)
probabilities = st.floats(0, 1)
forecasts = st.builds(
    Forecast,
    names,
    epoch=st.integers(0, 2**63),
    made_at=st.floats(0, 1e10),
    steps=st.lists(st.builds(StepForecast, st.dictionaries(names, probabilities, max_size=5), probabilities), max_size=4).map(
        tuple
    ),
    predictability=probabilities,
    step=st.integers(-1, 1000),
    ended=st.booleans(),
)


@given(forecasts)
def test_an_envelope_survives_writing_and_reading(forecast: Forecast) -> None:
    envelope = HintMaker().envelope(forecast)
    assert from_json(to_json(envelope)) == envelope
    assert from_msgpack(to_msgpack(envelope)) == envelope
    assert "\n" not in to_json(envelope)


@settings(max_examples=30)
@given(st.lists(forecasts, max_size=6, unique_by=lambda forecast: (forecast.workflow, forecast.epoch)))
def test_ids_are_unique(several: list[Forecast]) -> None:
    envelopes = [HintMaker(prefetch_probability=0.01).envelope(forecast) for forecast in several]
    actions = [action.action_id for envelope in envelopes for action in envelope.actions]
    assert len(set(actions)) == len(actions)
    assert len({envelope.message_id for envelope in envelopes}) == len(envelopes)


@pytest.mark.parametrize(
    ("value", "field"),
    [
        ([], "envelope"),
        (VALID | {"protocol_version": "0.2"}, "protocol_version"),
        (VALID | {"message_id": 3}, "message_id"),
        (VALID | {"actions": {}}, "actions"),
        (VALID | {"actions": [ACTION, 1]}, "actions[1]"),
        (VALID | {"actions": [ACTION | {"action_id": ""}]}, "actions[0].action_id"),
        (VALID | {"actions": [ACTION | {"payload": None}]}, "actions[0].payload"),
    ],
)
def test_a_malformed_envelope_is_refused_with_the_field(value: Any, field: str) -> None:
    for read, data in ((from_json, json.dumps(value).encode()), (from_msgpack, msgpack.packb(value))):
        with pytest.raises(InvalidArgument) as raised:
            read(data)
        assert raised.value.field == field


@given(st.binary(max_size=50))
def test_random_bytes_are_refused(data: bytes) -> None:
    for read in (from_json, from_msgpack):
        with pytest.raises(InvalidArgument):
            read(data)


@pytest.mark.parametrize("field", ["gamma", "half_life_s", "prefetch_probability"])
def test_settings_have_ranges(field: str) -> None:
    with pytest.raises(InvalidArgument, match=field):
        HintMaker(**{field: 0.0})


@given(forecasts)
def test_a_forecast_comes_back_from_its_hints_but_for_rounding(forecast: Forecast) -> None:
    (found,) = [
        found
        for action in HintMaker().envelope(forecast).actions
        if (found := forecast_of(action.action_type, action.payload)) is not None
    ]
    if forecast.ended:
        assert found == Forecast(forecast.workflow, forecast.epoch, forecast.made_at, (), ended=True)
        return
    assert replace(found, steps=(), predictability=0.0) == replace(forecast, steps=(), predictability=0.0)
    assert found.predictability == pytest.approx(forecast.predictability, abs=1e-6)
    for read, step in zip(found.steps, forecast.steps, strict=True):
        assert read.survival == pytest.approx(step.survival, abs=1e-6)
        assert read.agents == pytest.approx(dict(step.agents), abs=1e-6)
