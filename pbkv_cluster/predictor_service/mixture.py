"""Joins experts by how well each has forecast lately, and calibrates what comes of it.

Weights follow Hedge with a fixed share (Herbster and Warmuth: Tracking the best expert, Machine Learning 32, 1998), one set for
each horizon before and after a step's output is known. An expert may abstain, by a row of zeros; it is then held to have done
as well as the others (specialists: Freund, Schapire, Singer, Warmuth, STOC 1997). The joint forecast is raised to a power,
learnt online, which is the inverse of the temperature of Guo et al. (On calibration of modern neural networks, ICML 2017).
"""

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

    def seen(self, outputs: Floats, phase: int, step: int, column: int) -> None:
        """What the experts had said of a step that has come now.

        Args:
            outputs: [experts, K, columns].
            phase: in which they said so.
            step: from 0, of the horizon.
            column: that came; one that they did not know is -1.
        """
        said = outputs[:, step, :].astype(np.float64)
        weights = self.weights[phase, step]
        awake = said.sum(axis=1) > 0.0
        if not awake.any():
            return
        chances = said[:, column] if 0 <= column < said.shape[1] else np.zeros(len(said))
        joint = weights[awake] @ said[awake]
        joint /= joint.sum()
        chance = joint[column] if 0 <= column < len(joint) else 0.0
        losses = -np.log(np.maximum(np.where(awake, chances, chance), _FLOOR))
        weights *= np.exp(-_RATE * (losses - losses.min()))
        weights /= weights.sum()
        weights[:] = (1.0 - _SHARE) * weights + _SHARE / len(weights)
        if 0 <= column < len(joint):
            self._calibrate(np.log(joint + _TINY), phase, step, column)

    def _calibrate(self, logs: npt.NDArray[np.float64], phase: int, step: int, column: int) -> None:
        powered = np.exp(self.powers[phase, step] * logs)
        slope = logs[column] - (powered @ logs) / powered.sum()
        power = self.powers[phase, step] * np.exp(_POWER_RATE * np.clip(slope, -5.0, 5.0))
        self.powers[phase, step] = np.clip(power, *_POWERS)

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
