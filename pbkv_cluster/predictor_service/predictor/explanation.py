"""Why a predictor expects what it expects."""

from collections.abc import Sequence
from dataclasses import dataclass

from pbkv_cluster.core.forecasts.forecast import StepForecast


@dataclass(frozen=True, slots=True)
class Opinion:
    """What one expert says."""

    expert: str
    weights: tuple[float, ...]  # in the mixture, by step
    steps: tuple[StepForecast, ...]  # empty: it has nothing to say


@dataclass(frozen=True, slots=True)
class Explanation:
    """What is expected of an open workflow now."""

    steps: Sequence[StepForecast]  # the forecast
    predictability: float
    workload: str = ""
    begun: int = 0  # steps
    output_known: bool = False  # of the latest step
    opinions: tuple[Opinion, ...] = ()  # none: the model does not tell experts apart
