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
        known = joint.any(axis=2, keepdims=True)
        joint += _TINY
        powered: Floats = joint ** self.powers[phases].astype(np.float32)[:, :, None]
        powered /= powered.sum(axis=2, keepdims=True)
        powered *= known
        return powered

    def seen(self, said: Floats, phases: npt.NDArray[np.intp], came: npt.NDArray[np.intp]) -> None:
        """What the experts had said at one or several moments, and what came. All count together.

        Args:
            said: probabilities [moments, experts, K, columns].
            phases: of each moment.
            came: columns [moments, K]; one that is not known is -1.
        """
        experts = self.weights.shape[2]
        every = said.swapaxes(1, 2).reshape(-1, experts, said.shape[3])
        horizon = said.shape[2]
        places = (phases[:, None] * horizon + np.arange(horizon)).ravel()
        came = came.ravel()
        weights, powers = self.weights.reshape(-1, experts), self.powers.reshape(-1)
        joint = np.einsum("mes,me->ms", every, weights[places].astype(np.float32))
        totals = joint.sum(axis=1)
        known = np.flatnonzero((totals > 0.0) & (came >= 0))
        if not len(known):
            return
        every, places, came = every[known], places[known], came[known]
        joint = joint[known] / totals[known, None] + _TINY
        each = np.arange(len(known))
        chances = np.where(every.any(axis=2), every[each, :, came], joint[each, came][:, None])
        chances = np.maximum(chances, _FLOOR)
        gains = np.zeros_like(weights)
        np.add.at(gains, places, np.log(chances / chances.max(axis=1, keepdims=True)))
        gains -= gains.max(axis=1, keepdims=True)
        weights *= np.exp(_RATE * gains)
        weights /= weights.sum(axis=1, keepdims=True)
        kept = (1.0 - _SHARE) ** np.bincount(places, minlength=len(weights))[:, None]
        weights *= kept
        weights += (1.0 - kept) / experts
        logs = np.log(joint)
        powered = np.exp(powers[places].astype(np.float32)[:, None] * logs)
        slopes = logs[each, came] - (powered * logs).sum(axis=1) / powered.sum(axis=1)
        moves = np.bincount(places, np.clip(slopes, -5.0, 5.0), minlength=len(powers))
        np.clip(powers * np.exp(_POWER_RATE * moves), *_POWERS, out=powers)

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
