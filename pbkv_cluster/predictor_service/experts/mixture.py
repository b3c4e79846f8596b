"""Joins the experts' forecasts, weighed by how well each has forecast lately, and calibrates the result.

Weights follow Hedge with a fixed share (Herbster and Warmuth: Tracking the best expert, Machine Learning 32, 1998), one set for
each step ahead and phase. An expert may abstain, by a row of zeros; it then counts as having done as well as the others
(specialists: Freund, Schapire, Singer, Warmuth, STOC 1997). The joint forecast is raised to a power, learnt online: the inverse
of the temperature of Guo et al. (On calibration of modern neural networks, ICML 2017).
"""

from enum import IntEnum
from typing import Any

import numpy as np
import numpy.typing as npt

from pbkv_cluster.predictor_service.experts.base import Floats
from pbkv_cluster.predictor_service.jit import jit

_RATE = 0.3
_SHARE = 1e-3
_FLOOR = 1e-4
_POWER_RATE = 0.005
_POWERS = (0.25, 4.0)
_TINY = np.float32(1e-9)


class Phase(IntEnum):
    """When a forecast is made; the mixture weighs the experts in each phase separately."""

    BEFORE_OUTPUT = 0  # of the latest step, or before the first step
    AFTER_OUTPUT = 1


class Mixture:
    """One workload's weights and powers."""

    def __init__(self, experts: int, horizon: int) -> None:
        self.weights: npt.NDArray[np.float64] = np.full((len(Phase), horizon, experts), 1.0 / experts)
        self.powers: npt.NDArray[np.float64] = np.ones((len(Phase), horizon))

    def join(self, forecasts: Floats, phases: npt.NDArray[np.intp]) -> Floats:
        """The calibrated joint forecasts.

        Args:
            forecasts: of the experts, probabilities [moments, experts, K, columns].
            phases: of each moment, a `Phase`.

        Returns:
            Probabilities [moments, K, columns]; those of a step add up to 1, or are all 0 if every expert abstains.
        """
        joint = np.empty((len(forecasts), *forecasts.shape[2:]), dtype=np.float32)
        _join(forecasts, phases, self.weights, self.powers, joint)
        return joint

    def update(self, forecasts: Floats, phases: npt.NDArray[np.intp], outcomes: npt.NDArray[np.intp]) -> None:
        """Updates weights and powers, once for all the moments given.

        Args:
            forecasts: of the experts, probabilities [moments, experts, K, columns].
            phases: of each moment, a `Phase`.
            outcomes: the columns that followed, [moments, K]; -1: unknown.
        """
        gains, slopes, counts = np.zeros_like(self.weights), np.zeros_like(self.powers), np.zeros_like(self.powers)
        _weigh(forecasts, phases, outcomes, self.weights, self.powers, gains, slopes, counts)
        gains -= gains.max(axis=2, keepdims=True)
        self.weights *= np.exp(_RATE * gains)
        self.weights /= self.weights.sum(axis=2, keepdims=True)
        kept = (1.0 - _SHARE) ** counts[:, :, None]
        self.weights *= kept
        self.weights += (1.0 - kept) / self.weights.shape[2]
        np.clip(self.powers * np.exp(_POWER_RATE * slopes), *_POWERS, out=self.powers)

    def dump(self) -> dict[str, Any]:
        return {"weights": self.weights, "powers": self.powers}

    def restore(self, state: dict[str, Any]) -> None:
        """Raises:
        ValueError: the state is of other experts, or damaged.
        """
        weights = _checked(state, "weights", self.weights.shape, (0.0, 1.0))
        powers = _checked(state, "powers", self.powers.shape, _POWERS)
        if not np.allclose(weights.sum(axis=2), 1.0):
            raise ValueError("the mixture's weights do not fit: they must add up to 1")
        self.weights, self.powers = weights, powers


@jit
def _blend(forecasts: Floats, weights: npt.NDArray[np.float64], joint: Floats) -> np.float32:
    """Writes the weighted sum of the experts' forecasts of one step, [experts, columns], to `joint`. Returns its total."""
    total = np.float32(0.0)
    for column in range(forecasts.shape[1]):
        probability = np.float32(0.0)
        for expert in range(forecasts.shape[0]):
            probability += np.float32(weights[expert]) * forecasts[expert, column]
        joint[column] = probability
        total += probability
    return total


@jit
def _join(
    forecasts: Floats,
    phases: npt.NDArray[np.intp],
    weights: npt.NDArray[np.float64],
    powers: npt.NDArray[np.float64],
    joint: Floats,
) -> None:
    for at in range(len(joint)):
        for step in range(joint.shape[1]):
            row, phase = joint[at, step], phases[at]
            if _blend(forecasts[at, :, step], weights[phase, step], row) == 0.0:
                continue  # the row is 0
            power, total = np.float32(powers[phase, step]), np.float32(0.0)
            for column in range(len(row)):
                row[column] = np.exp(power * np.log(row[column] + _TINY))
                total += row[column]
            for column in range(len(row)):
                row[column] /= total


@jit
def _weigh(
    forecasts: Floats,
    phases: npt.NDArray[np.intp],
    outcomes: npt.NDArray[np.intp],
    weights: npt.NDArray[np.float64],
    powers: npt.NDArray[np.float64],
    gains: npt.NDArray[np.float64],
    slopes: npt.NDArray[np.float64],
    counts: npt.NDArray[np.float64],
) -> None:
    """Adds up each expert's log likelihood of the outcomes, less the best one's, in nats; the powers' slopes; and counts."""
    moments, experts, horizon, columns = forecasts.shape
    joint, likelihoods = np.empty(columns, np.float32), np.empty(experts, np.float64)
    for at in range(moments):
        phase = phases[at]
        for step in range(horizon):
            column = outcomes[at, step]
            total = _blend(forecasts[at, :, step], weights[phase, step], joint)
            if column < 0 or total == 0.0:
                continue
            counts[phase, step] += 1.0
            for expert in range(experts):
                own = forecasts[at, expert, step]
                abstains = own.max() == 0.0
                likelihoods[expert] = max(joint[column] / total + _TINY if abstains else own[column], _FLOOR)
            best = likelihoods.max()
            for expert in range(experts):
                gains[phase, step, expert] += np.log(likelihoods[expert] / best)
            expected = norm = 0.0
            for each in range(columns):
                log = np.log(joint[each] / total + _TINY)
                powered = np.exp(powers[phase, step] * log)
                expected += powered * log
                norm += powered
            slope = np.log(joint[column] / total + _TINY) - expected / norm
            slopes[phase, step] += min(max(slope, -5.0), 5.0)


def _checked(state: dict[str, Any], name: str, shape: tuple[int, ...], bounds: tuple[float, float]) -> npt.NDArray[np.float64]:
    value = state.get(name)
    if not isinstance(value, np.ndarray) or value.shape != shape or not np.issubdtype(value.dtype, np.floating):
        raise ValueError(f"the mixture's {name} do not fit")
    if not ((value >= bounds[0]) & (value <= bounds[1])).all():  # also refuses what is not finite
        raise ValueError(f"the mixture's {name} do not fit: they must lie between {bounds[0]} and {bounds[1]}")
    return value.astype(np.float64)
