"""Joins experts by how well each has forecast lately, and calibrates what comes of it.

Weights follow Hedge with a fixed share (Herbster and Warmuth: Tracking the best expert, Machine Learning 32, 1998), one set for
each horizon before and after a step's output is known. An expert may abstain, by a row of zeros; it is then held to have done
as well as the others (specialists: Freund, Schapire, Singer, Warmuth, STOC 1997). The joint forecast is raised to a power,
learnt online, which is the inverse of the temperature of Guo et al. (On calibration of modern neural networks, ICML 2017).
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from pbkv_cluster.predictor_service.experts.base import Floats

PHASES = 2  # before the step's output is known, and after

_RATE = 0.3
_SHARE = 1e-3
_FLOOR = 1e-4
_POWER_RATE = 0.02
_POWERS = (0.25, 4.0)
_TINY = 1e-9


class Mixture:
    """One workload's weights and powers."""

    def __init__(self, experts: int, horizon: int) -> None:
        self.weights: npt.NDArray[np.float64] = np.full((PHASES, horizon, experts), 1.0 / experts)
        self.powers: npt.NDArray[np.float64] = np.ones((PHASES, horizon))

    def join(self, outputs: Floats, phases: npt.NDArray[np.intp]) -> Floats:
        """The calibrated joint forecasts.

        Args:
            outputs: of the experts, [forecasts, experts, K, columns].
            phases: of each forecast.

        Returns:
            Probabilities [forecasts, K, columns]; those of a step add up to 1, or are all 0 where every expert abstains.
        """
        joint = np.einsum("neks,nke->nks", outputs, self.weights[phases].astype(np.float32))
        powered = np.exp(np.log(joint + _TINY) * self.powers[phases].astype(np.float32)[:, :, None])
        powered[joint.sum(axis=2) <= 0.0] = 0.0
        return _normal(powered)

    def seen(self, said: Floats, phases: Sequence[int], steps: Sequence[int], column: int) -> None:
        """What the experts had said of a step that has come now, at one or several moments before.

        Args:
            said: [moments, experts, columns].
            phases: of each moment.
            steps: of the horizon, from 0, that it was for each. No two moments have both alike.
            column: that came; one that was not known is -1.
        """
        at = np.array(phases), np.array(steps)
        totals = said.sum(axis=2)
        awake = totals > 0.0
        weights = self.weights[at]
        joint = np.einsum("mes,me->ms", said, weights * awake)
        sums = joint.sum(axis=1, keepdims=True)
        joint = joint / np.maximum(sums, _TINY) + _TINY
        known = 0 <= column < said.shape[2]
        chances = said[:, :, column] if known else np.zeros(totals.shape)
        chance = joint[:, column] if known else np.zeros(len(joint))
        chances = np.maximum(np.where(awake, chances, chance[:, None]), _FLOOR)
        weights = weights * np.exp(_RATE * np.log(chances / chances.max(axis=1, keepdims=True)))
        weights /= weights.sum(axis=1, keepdims=True)
        told = sums[:, 0] > 0.0
        self.weights[at] = np.where(told[:, None], (1.0 - _SHARE) * weights + _SHARE / weights.shape[1], self.weights[at])
        if known:
            powers = self.powers[at]
            logs = np.log(joint)
            powered = np.exp(powers[:, None] * logs)
            slopes = logs[:, column] - (powered * logs).sum(axis=1) / powered.sum(axis=1)
            moved = np.clip(powers * np.exp(_POWER_RATE * np.clip(slopes, -5.0, 5.0)), *_POWERS)
            self.powers[at] = np.where(told, moved, powers)

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


def _checked(state: dict[str, Any], name: str, shape: tuple[int, ...], bounds: tuple[float, float]) -> npt.NDArray[np.float64]:
    value = state.get(name)
    if not isinstance(value, np.ndarray) or value.shape != shape or not np.issubdtype(value.dtype, np.floating):
        raise ValueError(f"the mixture's {name} do not fit")
    if not ((value >= bounds[0]) & (value <= bounds[1])).all():  # so is nothing that is not finite
        raise ValueError(f"the mixture's {name} do not fit: they must lie between {bounds[0]} and {bounds[1]}")
    return value.astype(np.float64)


def _normal(rows: Floats) -> Floats:
    sums = rows.sum(axis=-1, keepdims=True)
    normal: Floats = np.divide(rows, sums, out=np.zeros_like(rows), where=sums > 0.0)
    return normal
