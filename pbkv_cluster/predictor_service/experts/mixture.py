"""Joins experts by how well each has forecast lately, and calibrates what comes of it.

Weights follow Hedge with a fixed share (Herbster and Warmuth: Tracking the best expert, Machine Learning 32, 1998), one set for
each horizon before and after a step's output is known. An expert may abstain, by a row of zeros; it is then held to have done
as well as the others (specialists: Freund, Schapire, Singer, Warmuth, STOC 1997). The joint forecast is raised to a power,
learnt online, which is the inverse of the temperature of Guo et al. (On calibration of modern neural networks, ICML 2017).
"""

from typing import Any

import numpy as np
import numpy.typing as npt

from pbkv_cluster.predictor_service.compiled import compiled
from pbkv_cluster.predictor_service.experts.base import Floats

PHASES = 2  # before the step's output is known, and after

_RATE = 0.3
_SHARE = 1e-3
_FLOOR = 1e-4
_POWER_RATE = 0.005
_POWERS = (0.25, 4.0)
_TINY = np.float32(1e-9)


class Mixture:
    """One workload's weights and powers."""

    def __init__(self, experts: int, horizon: int) -> None:
        self.weights: npt.NDArray[np.float64] = np.full((PHASES, horizon, experts), 1.0 / experts)
        self.powers: npt.NDArray[np.float64] = np.ones((PHASES, horizon))

    def join(self, said: Floats, phases: npt.NDArray[np.intp]) -> Floats:
        """The calibrated joint forecasts.

        Args:
            said: by the experts, probabilities [forecasts, experts, K, columns].
            phases: of each forecast.

        Returns:
            Probabilities [forecasts, K, columns]; those of a step add up to 1, or are all 0 where every expert abstains.
        """
        joint = np.empty((len(said), *said.shape[2:]), dtype=np.float32)
        _join(said, phases, self.weights, self.powers, joint)
        return joint

    def seen(self, said: Floats, phases: npt.NDArray[np.intp], came: npt.NDArray[np.intp]) -> None:
        """What the experts had said at one or several moments, and what came. All count together.

        Args:
            said: probabilities [moments, experts, K, columns].
            phases: of each moment.
            came: columns [moments, K]; one that is not known is -1.
        """
        gains, moves, counts = np.zeros_like(self.weights), np.zeros_like(self.powers), np.zeros_like(self.powers)
        _weigh(said, phases, came, self.weights, self.powers, gains, moves, counts)
        gains -= gains.max(axis=2, keepdims=True)
        self.weights *= np.exp(_RATE * gains)
        self.weights /= self.weights.sum(axis=2, keepdims=True)
        kept = (1.0 - _SHARE) ** counts[:, :, None]
        self.weights *= kept
        self.weights += (1.0 - kept) / self.weights.shape[2]
        np.clip(self.powers * np.exp(_POWER_RATE * moves), *_POWERS, out=self.powers)

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


@compiled
def _blend(said: Floats, weights: npt.NDArray[np.float64], joint: Floats) -> np.float32:
    """The weighted sum of what experts say, [experts, columns], of one step. Returns what it adds up to."""
    total = np.float32(0.0)
    for column in range(said.shape[1]):
        chance = np.float32(0.0)
        for expert in range(said.shape[0]):
            chance += np.float32(weights[expert]) * said[expert, column]
        joint[column] = chance
        total += chance
    return total


@compiled
def _join(
    said: Floats,
    phases: npt.NDArray[np.intp],
    weights: npt.NDArray[np.float64],
    powers: npt.NDArray[np.float64],
    joint: Floats,
) -> None:
    for at in range(len(joint)):
        for step in range(joint.shape[1]):
            row, phase = joint[at, step], phases[at]
            if _blend(said[at, :, step], weights[phase, step], row) == 0.0:
                continue  # row is 0
            power, total = np.float32(powers[phase, step]), np.float32(0.0)
            for column in range(len(row)):
                row[column] = np.exp(power * np.log(row[column] + _TINY))
                total += row[column]
            for column in range(len(row)):
                row[column] /= total


@compiled
def _weigh(
    said: Floats,
    phases: npt.NDArray[np.intp],
    came: npt.NDArray[np.intp],
    weights: npt.NDArray[np.float64],
    powers: npt.NDArray[np.float64],
    gains: npt.NDArray[np.float64],
    moves: npt.NDArray[np.float64],
    counts: npt.NDArray[np.float64],
) -> None:
    """Adds up what outcomes say for each expert, in nats, and for a change of each power, and counts them."""
    moments, experts, horizon, columns = said.shape
    joint, chances = np.empty(columns, np.float32), np.empty(experts, np.float64)
    for at in range(moments):
        phase = phases[at]
        for step in range(horizon):
            column = came[at, step]
            total = _blend(said[at, :, step], weights[phase, step], joint)
            if column < 0 or total == 0.0:
                continue
            counts[phase, step] += 1.0
            for expert in range(experts):
                own = said[at, expert, step]
                abstains = own.max() == 0.0
                chances[expert] = max(joint[column] / total + _TINY if abstains else own[column], _FLOOR)
            best = chances.max()
            for expert in range(experts):
                gains[phase, step, expert] += np.log(chances[expert] / best)
            expected = norm = 0.0
            for each in range(columns):
                log = np.log(joint[each] / total + _TINY)
                powered = np.exp(powers[phase, step] * log)
                expected += powered * log
                norm += powered
            slope = np.log(joint[column] / total + _TINY) - expected / norm
            moves[phase, step] += min(max(slope, -5.0), 5.0)


def _checked(state: dict[str, Any], name: str, shape: tuple[int, ...], bounds: tuple[float, float]) -> npt.NDArray[np.float64]:
    value = state.get(name)
    if not isinstance(value, np.ndarray) or value.shape != shape or not np.issubdtype(value.dtype, np.floating):
        raise ValueError(f"the mixture's {name} do not fit")
    if not ((value >= bounds[0]) & (value <= bounds[1])).all():  # so is nothing that is not finite
        raise ValueError(f"the mixture's {name} do not fit: they must lie between {bounds[0]} and {bounds[1]}")
    return value.astype(np.float64)
