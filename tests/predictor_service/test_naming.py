"""Forecasts of columns, told by agents' names."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest

from pbkv_cluster.core.config import PredictorConfig
from pbkv_cluster.core.forecasts.batch import Forecasts
from pbkv_cluster.core.forecasts.forecast import Forecast, StepForecast
from pbkv_cluster.predictor_service.predictor.agent_forecasts import NAMED_AGENTS, NAMED_FROM, named
from pbkv_cluster.predictor_service.workflow.prediction_state import PredictionState
from pbkv_cluster.predictor_service.workload.workload_model import WorkloadModel


def model_of(agents: list[str]) -> WorkloadModel:
    model = WorkloadModel(PredictorConfig(), ["markov"])
    model.declare(agents, {})
    return model


def steps_of(
    model: WorkloadModel, tracks: Sequence[PredictionState | None], rows: np.ndarray
) -> list[tuple[StepForecast, ...]]:
    number, horizon = rows.shape[:2]
    empty = Forecasts.of([Forecast("", 0, 0.0, (StepForecast({}, 1.0),) * horizon)] * number)
    survival, counts, agents, chances, names = named(model, tracks, rows)
    found = replace(
        empty, survival=survival, agent_counts=counts, agent_positions=agents, probabilities=chances, agent_names=names
    )
    return [each.steps for each in found]


def test_agents_are_told_given_that_the_workflow_goes_on() -> None:
    ((one, two),) = steps_of(model_of(["a", "b"]), [None], np.array([[[0.5, 0.4, 0.1], [0.0, 1.0, 0.0]]], dtype=np.float32))
    assert one.agents == pytest.approx({"a": 0.8, "b": 0.2})
    assert one.survival == pytest.approx(0.5)
    assert two.agents == pytest.approx({"a": 1.0})
    assert two.survival == pytest.approx(1.0)


@pytest.mark.parametrize("left", [1e-3, 1e-7, 1e-12, 1e-30, 0.0])
def test_chances_add_up_however_certain_the_end_is(left: float) -> None:
    ((step,),) = steps_of(model_of(["a"]), [None], np.array([[[1.0 - left, left]]], dtype=np.float32))
    assert 0.0 < step.survival <= 1.0
    assert sum(step.agents.values()) == pytest.approx(1.0 if left else 0.0)


def test_agents_that_a_workflow_invented_are_told_to_it_alone() -> None:
    model, rows = model_of(["a"]), np.array([[0.0, 0.25, 0.75], [0.5, 0.5, 0.0]], dtype=np.float32)
    inventive = PredictionState(2)
    model.label("mine", "workflow", "", inventive.own)
    before, found, behind = steps_of(model, [None, inventive, None], np.stack([rows, rows, rows]))
    assert [step.agents for step in found] == [pytest.approx({"a": 0.25, "mine": 0.75}), pytest.approx({"a": 1.0, "mine": 0.0})]
    for steps in (before, behind):
        assert [step.agents for step in steps] == [pytest.approx({"a": 0.25}), pytest.approx({"a": 1.0})]


def test_where_nobody_knows_the_workflow_goes_on() -> None:
    ((step,),) = steps_of(model_of(["a"]), [None], np.zeros((1, 1, 2), dtype=np.float32))
    assert (step.agents, step.survival) == ({}, 1.0)


def test_the_likeliest_are_named_and_none_that_mean_nothing() -> None:
    agents = [f"agent-{number}" for number in range(2 * NAMED_AGENTS)]
    rows = np.array([[[0.0, *range(1, len(agents) + 1)]]], dtype=np.float32)
    ((step,),) = steps_of(model_of(agents), [None], rows / rows.sum())
    assert set(step.agents) == set(agents[-NAMED_AGENTS:])
    few = np.array([[[0.0, 1.0 - NAMED_FROM / 2, NAMED_FROM / 2]]], dtype=np.float32)
    ((step,),) = steps_of(model_of(["a", "b"]), [None], few)
    assert set(step.agents) == {"a"}
