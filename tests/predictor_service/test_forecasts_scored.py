"""Scores of forecasts: what is likeliest is compared with what came, once for each outcome."""

import numpy as np
import pytest

from pbkv_cluster.core.config import PredictorConfig
from pbkv_cluster.core.workflow.events import EventKind, WorkflowEvent
from pbkv_cluster.predictor_service.predictor.expert_predictor import ExpertPredictor
from pbkv_cluster.predictor_service.workload.forecast_scores import ForecastScores, RecentAccuracy


def test_hits_confidence_and_calibration_are_counted_and_ignorance_is_not() -> None:
    scores = ForecastScores()
    forecasts = np.array([[0.75, 0.25], [0.05, 0.95], [0.0, 0.0], [0.45, 0.55], [1.0, 0.0]], dtype=np.float32)
    assert scores.add(forecasts, np.array([0, 0, 1, -1, 0])) == [True, False, False, True]
    assert (scores.scored, scores.correct) == (4, 2)
    assert scores.confidence == pytest.approx(0.75 + 0.95 + 0.55 + 1.0)
    assert scores.scored_by_probability == [0, 0, 0, 0, 0, 1, 0, 1, 0, 2]
    assert scores.correct_by_probability == [0, 0, 0, 0, 0, 0, 0, 1, 0, 1]


def test_recent_accuracy_follows_what_happens() -> None:
    accuracy = RecentAccuracy()
    assert accuracy.value == 0.0
    accuracy.add([True] * 50)
    assert accuracy.value == pytest.approx(1.0)
    accuracy.add([False] * 500)
    assert accuracy.value < 0.02
    assert accuracy.scored == 550


def run(predictor: ExpertPredictor, workflow: str, agents: str) -> None:
    kinds = [
        (EventKind.WORKFLOW_STARTED, ""),
        *((EventKind.STEP_STARTED, agent) for agent in agents),
        (EventKind.WORKFLOW_ENDED, ""),
    ]
    for sequence, (kind, agent) in enumerate(kinds):
        step = max(sequence - 1, 0)
        predictor.observe(WorkflowEvent(kind, workflow, sequence, float(sequence), "trips", agent, step=step))
    predictor.learn()


def test_a_workload_that_repeats_itself_is_soon_forecast_rightly() -> None:
    predictor = ExpertPredictor(PredictorConfig(), ["markov"])
    assert predictor.quality().workloads == {}
    for number in range(40):
        run(predictor, f"w{number}", "abcab")
    quality = predictor.quality()
    assert quality.scores.scored > 100
    assert quality.workloads["trips"].scored == quality.scores.scored
    assert quality.scores.correct / quality.scores.scored > 0.6
    assert quality.workloads["trips"].accuracy > 0.6
    assert 0 < quality.scores.confidence <= quality.scores.scored
