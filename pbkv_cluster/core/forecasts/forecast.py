"""Forecasts: what the predictor says about one workflow's next steps."""

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class StepForecast:
    """The k-th step from now, given that the workflow gets that far."""

    agents: Mapping[str, float]  # probability of each agent; what is missing to 1 is spread over agents not named
    survival: float  # probability that the workflow has not ended by this step


@dataclass(frozen=True, slots=True)
class Forecast:
    """The next K steps of one workflow. A forecast with a higher epoch replaces one with a lower."""

    workflow: str
    epoch: int
    made_at: float  # seconds since the epoch (the clock's `wall`)
    steps: tuple[StepForecast, ...]
    predictability: float = 0.0  # R = 1 - H(A'|A) / H(A'), in [0, 1]
    step: int = -1  # number of the step behind which it looks ahead, as the gateway counts; -1: none has begun, or unknown
    ended: bool = False  # the workflow is over; `steps` is empty
