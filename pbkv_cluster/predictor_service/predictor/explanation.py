"""Why a predictor forecasts what it forecasts."""

from collections.abc import Sequence
from dataclasses import dataclass

from pbkv_cluster.core.forecasts.forecast import StepForecast


@dataclass(frozen=True, slots=True)
class Opinion:
    """What one expert forecasts by itself."""

    expert: str
    weights: tuple[float, ...]  # in the mixture, for each step
    steps: tuple[StepForecast, ...]  # empty: it abstains


@dataclass(frozen=True, slots=True)
class Explanation:
    """The present forecast of an open workflow, and what it is made of."""

    steps: Sequence[StepForecast]  # the forecast
    predictability: float
    workload: str = ""
    begun: int = 0  # steps started
    output_known: bool = False  # of the latest step
    opinions: tuple[Opinion, ...] = ()  # empty: the predictor is not made of experts
