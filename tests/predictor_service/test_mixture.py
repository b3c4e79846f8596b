"""Hedge with a fixed share over experts, and the calibration after it."""

import math
import random
from collections.abc import Callable

import numpy as np
import pytest

from pbkv_cluster.predictor_service.experts.mixture import Mixture

RATE, SHARE, FLOOR = 0.3, 1e-3, 1e-4  # as in the module
ROUNDS = 2000


def rows(*probabilities: list[float]) -> np.ndarray:
    """Experts' outputs for a horizon of one, [experts, 1, columns]."""
    return np.array(probabilities, dtype=np.float32)[:, None, :]


def update(mixture: Mixture, outputs: np.ndarray, phase: int, step: int, column: int) -> None:
    """Updates with one moment, of which the outcome of one step is known."""
    outcomes = np.full((1, outputs.shape[1]), -1)
    outcomes[0, step] = column
    mixture.update(outputs[None], np.array([phase]), outcomes)


def test_moments_that_are_learnt_together_give_what_they_give_one_by_one() -> None:
    draws = np.random.default_rng(4)
    together, alone = Mixture(3, 3), Mixture(3, 3)
    for _ in range(50):
        forecasts = draws.dirichlet(np.ones(5), size=(2, 3, 3)).astype(np.float32)
        forecasts[1, 2] = 0.0  # abstains
        outcomes = draws.integers(-1, 5, size=(2, 3))
        together.update(forecasts, np.array([0, 1]), outcomes)
        for at, phase in enumerate((0, 1)):
            for step in range(3):
                update(alone, forecasts[at], phase, step, int(outcomes[at, step]))
    assert together.weights == pytest.approx(alone.weights)
    assert together.powers == pytest.approx(alone.powers)


def loss(row: np.ndarray, column: int) -> float:
    return -math.log(max(float(row[column]), FLOOR))


def test_weights_by_hand() -> None:
    mixture = Mixture(2, 1)
    update(mixture, rows([0.9, 0.1], [0.5, 0.5]), 0, 0, 0)
    one, two = 0.9**RATE, 0.5**RATE
    expected = [(1 - SHARE) * each / (one + two) + SHARE / 2 for each in (one, two)]
    assert mixture.weights[0, 0] == pytest.approx(expected)
    assert mixture.weights[1, 0] == pytest.approx([0.5, 0.5])  # after the output is another matter


def test_several_steps_of_one_kind_count_together() -> None:
    mixture = Mixture(2, 1)
    forecasts = np.stack([rows([0.9, 0.1], [0.5, 0.5]), rows([0.2, 0.8], [0.6, 0.4])])
    mixture.update(forecasts, np.array([0, 0]), np.array([[0], [1]]))
    one, two = (0.9 * 0.8) ** RATE, (0.5 * 0.4) ** RATE
    kept = (1 - SHARE) ** 2
    assert mixture.weights[0, 0] == pytest.approx([kept * each / (one + two) + (1 - kept) / 2 for each in (one, two)])


def test_a_very_long_batch_leaves_weights() -> None:
    mixture, moments = Mixture(2, 1), 2000
    in_turn = [rows([1.0, 0.0], [0.0, 1.0]), rows([0.0, 1.0], [1.0, 0.0])]
    forecasts = np.stack(in_turn * (moments // 2))
    mixture.update(forecasts, np.zeros(moments, dtype=int), np.zeros((moments, 1), dtype=int))
    assert mixture.weights[0, 0] == pytest.approx([0.5, 0.5])


def test_the_joint_forecast_is_the_weighted_mean_while_nothing_is_learnt() -> None:
    joint = Mixture(2, 1).join(rows([0.9, 0.1, 0.0], [0.1, 0.5, 0.4])[None], np.array([0]))
    assert joint[0, 0] == pytest.approx([0.5, 0.3, 0.2], abs=1e-6)


def test_an_expert_that_abstains_is_left_out_and_loses_nothing() -> None:
    mixture = Mixture(2, 1)
    outputs = rows([0.0, 0.0], [0.8, 0.2])
    assert mixture.join(outputs[None], np.array([0]))[0, 0] == pytest.approx([0.8, 0.2], abs=1e-6)
    update(mixture, outputs, 0, 0, 0)
    assert mixture.weights[0, 0] == pytest.approx([0.5, 0.5])
    update(mixture, rows([0.0, 0.0], [0.0, 0.0]), 0, 0, 0)
    assert not mixture.join(rows([0.0, 0.0], [0.0, 0.0])[None], np.array([0])).any()


def test_an_unknown_outcome_changes_nothing() -> None:
    mixture = Mixture(3, 1)
    update(mixture, rows([0.9, 0.1], [0.5, 0.5], [0.0, 0.0]), 0, 0, -1)
    assert mixture.weights[0, 0] == pytest.approx([1 / 3] * 3)
    assert (mixture.powers == 1.0).all()


def regret(outputs_of: Callable[[int], np.ndarray], outcomes: list[int], experts: int) -> tuple[float, float]:
    """Hedge's own loss, -1/η ln Σ w exp(-η l), in excess of the best expert's, and the bound on it."""
    mixture, mixed, each = Mixture(experts, 1), 0.0, np.zeros(experts)
    for at, column in enumerate(outcomes):
        outputs = outputs_of(at)
        losses = np.array([loss(row[0], column) for row in outputs])
        mixed += -math.log(float(mixture.weights[0, 0] @ np.exp(-RATE * losses))) / RATE
        each += losses
        update(mixture, outputs, 0, 0, column)
    bound = (math.log(experts) - len(outcomes) * math.log(1 - SHARE)) / RATE  # Herbster and Warmuth, no shifts
    return mixed - each.min(), bound


@pytest.mark.parametrize("experts", [2, 5])
def test_regret_against_the_best_expert_is_bounded(experts: int) -> None:
    draws = np.random.default_rng(experts)
    adversarial = [rows(*draws.dirichlet([0.2] * 4, experts).tolist()) for _ in range(ROUNDS)]
    worst = [int(outputs.mean(axis=0)[0].argmin()) for outputs in adversarial]  # the least likely outcome of all
    excess, bound = regret(adversarial.__getitem__, worst, experts)
    assert excess <= bound + 1e-6
    fixed = rows(*draws.dirichlet([1.0] * 4, experts).tolist())
    truth = fixed[0, 0].astype(np.float64)
    random = draws.choice(4, size=ROUNDS, p=truth / truth.sum()).tolist()
    excess, bound = regret(lambda at: fixed, random, experts)
    assert excess <= bound + 1e-6


def test_the_joint_forecast_is_no_worse_than_the_theory_of_log_loss() -> None:
    # Mixing forecasts themselves has at most Hedge's loss: x^η is concave for η ≤ 1.
    draws = np.random.default_rng(3)
    mixture, served, each = Mixture(3, 1), 0.0, np.zeros(3)
    truth = np.array([0.6, 0.3, 0.1])
    outputs = rows([0.6, 0.3, 0.1], [0.3, 0.4, 0.3], [0.1, 0.1, 0.8])
    for column in draws.choice(3, size=ROUNDS, p=truth).tolist():
        served += loss(mixture.join(outputs[None], np.array([0]))[0, 0], column)
        each += [loss(row[0], column) for row in outputs]
        update(mixture, outputs, 0, 0, column)
    assert (served - each.min()) / ROUNDS < 0.01
    assert mixture.weights[0, 0].argmax() == 0


def test_it_turns_to_another_expert_when_the_best_one_changes() -> None:
    mixture = Mixture(2, 1)
    for column, expert in ((0, 0), (1, 1), (0, 0)):
        for _ in range(500):
            update(mixture, rows([0.95, 0.05], [0.05, 0.95]), 0, 0, column)
        assert mixture.weights[0, 0, expert] > 0.99
    for _ in range(15):
        update(mixture, rows([0.95, 0.05], [0.05, 0.95]), 0, 0, 1)
    assert mixture.weights[0, 0, 1] > 0.9


@pytest.mark.parametrize("power", [0.5, 2.0])
def test_calibration_finds_how_over_or_underconfident_experts_are(power: float) -> None:
    draws = random.Random(4)
    mixture = Mixture(1, 1)
    found = []
    for at in range(6000):
        weights = [draws.random() ** 2 + 0.01 for _ in range(4)]
        truth = [weight / sum(weights) for weight in weights]
        forecasts = [each**power for each in truth]  # its true inverse temperature is 1 / power
        output = rows([each / sum(forecasts) for each in forecasts])
        update(mixture, output, 0, 0, draws.choices(range(4), truth)[0])
        if at > 3000:
            found.append(mixture.powers[0, 0])
    assert np.mean(found) == pytest.approx(1 / power, rel=0.15)


def test_forecasts_stay_distributions() -> None:
    draws = np.random.default_rng(5)
    mixture = Mixture(4, 3)
    for _ in range(300):
        outputs = draws.dirichlet([0.05] * 6, (4, 3)).astype(np.float32)
        outputs[draws.random(4) < 0.3] = 0.0
        for step in range(3):
            update(mixture, outputs, int(draws.integers(2)), step, int(draws.integers(-1, 6)))
        joint = mixture.join(outputs[None], np.array([1]))[0]
        if outputs.any():
            assert joint.sum(axis=1) == pytest.approx([1.0] * 3, abs=1e-5)
        assert (joint >= 0).all()
        assert mixture.weights.sum(axis=2) == pytest.approx(np.ones((2, 3)))
        assert (mixture.weights > 0).all()


def test_saved_and_restored() -> None:
    mixture, again = Mixture(2, 1), Mixture(2, 1)
    for _ in range(10):
        update(mixture, rows([0.9, 0.1], [0.5, 0.5]), 0, 0, 0)
    again.restore(mixture.dump())
    outputs, phases = rows([0.9, 0.1], [0.5, 0.5])[None], np.array([0])
    assert (again.join(outputs, phases) == mixture.join(outputs, phases)).all()


@pytest.mark.parametrize("name", ["weights", "powers"])
def test_damage_is_refused(name: str) -> None:
    good = Mixture(2, 1).dump()
    for bad in (None, "x", good[name][:1], good[name] * np.nan, good[name] * 0, good[name].astype(str), good[name] * 1e9):
        with pytest.raises(ValueError, match=name):
            Mixture(2, 1).restore({**good, name: bad})
