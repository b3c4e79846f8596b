"""Forecasts of columns turned into forecasts of agents by name."""

from collections.abc import Mapping, Sequence

import numpy as np
import pytest

from pbkv_cluster.core.config import PredictorConfig
from pbkv_cluster.core.forecasts.batch import Forecasts
from pbkv_cluster.core.forecasts.forecast import StepForecast
from pbkv_cluster.predictor_service.predictor.agent_forecasts import MAX_AGENTS, MIN_PROBABILITY, agent_forecasts
from pbkv_cluster.predictor_service.workload.workload_model import WorkloadModel


def model_of(agents: list[str]) -> WorkloadModel:
    model = WorkloadModel(PredictorConfig(), ["markov"])
    model.declare(agents, {})
    return model


def steps_of(
    model: WorkloadModel, rows: np.ndarray, own_labels: Sequence[Mapping[str, str]] = ({},)
) -> list[tuple[StepForecast, ...]]:
    number, horizon = rows.shape[:2]
    zeros, made_at, predictability = np.zeros(number, dtype=np.int32), np.zeros(number), np.zeros(number, dtype=np.float32)
    lengths, ended = np.full(number, horizon, dtype=np.int32), zeros.astype(np.bool_)
    steps = agent_forecasts(model, own_labels, rows)
    found = Forecasts(
        [""] * number, zeros.astype(np.uint64), made_at, predictability, zeros, ended, lengths, *steps, [""] * number
    )
    return [each.steps for each in found]


def test_agents_are_forecast_given_that_the_workflow_goes_on() -> None:
    ((one, two),) = steps_of(model_of(["a", "b"]), np.array([[[0.5, 0.4, 0.1], [0.0, 1.0, 0.0]]], dtype=np.float32))
    assert one.agents == pytest.approx({"a": 0.8, "b": 0.2})
    assert one.survival == pytest.approx(0.5)
    assert two.agents == pytest.approx({"a": 1.0})
    assert two.survival == pytest.approx(1.0)


@pytest.mark.parametrize("left", [1e-3, 1e-7, 1e-12, 1e-30, 0.0])
def test_probabilities_add_up_however_certain_the_end_is(left: float) -> None:
    ((step,),) = steps_of(model_of(["a"]), np.array([[[1.0 - left, left]]], dtype=np.float32))
    assert 0.0 < step.survival <= 1.0
    assert sum(step.agents.values()) == pytest.approx(1.0 if left else 0.0)


def test_agents_that_one_workflow_invented_are_in_its_forecast_alone() -> None:
    model, rows = model_of(["a"]), np.array([[0.0, 0.25, 0.75], [0.5, 0.5, 0.0]], dtype=np.float32)
    own: dict[str, str] = {}
    model.label("mine", "workflow", "", own)
    before, found, after = steps_of(model, np.stack([rows, rows, rows]), [{}, own, {}])
    assert [step.agents for step in found] == [pytest.approx({"a": 0.25, "mine": 0.75}), pytest.approx({"a": 1.0, "mine": 0.0})]
    for steps in (before, after):
        assert [step.agents for step in steps] == [pytest.approx({"a": 0.25}), pytest.approx({"a": 1.0})]


def test_without_knowledge_the_workflow_goes_on() -> None:
    ((step,),) = steps_of(model_of(["a"]), np.zeros((1, 1, 2), dtype=np.float32))
    assert (step.agents, step.survival) == ({}, 1.0)


def test_only_the_likeliest_agents_are_named() -> None:
    agents = [f"agent-{number}" for number in range(2 * MAX_AGENTS)]
    rows = np.array([[[0.0, *range(1, len(agents) + 1)]]], dtype=np.float32)
    ((step,),) = steps_of(model_of(agents), rows / rows.sum())
    assert set(step.agents) == set(agents[-MAX_AGENTS:])
    few = np.array([[[0.0, 1.0 - MIN_PROBABILITY / 2, MIN_PROBABILITY / 2]]], dtype=np.float32)
    ((step,),) = steps_of(model_of(["a", "b"]), few)
    assert set(step.agents) == {"a"}
