"""A forecast: which agents one workflow calls next, as predicted."""

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class StepForecast:
    """Prediction of the k-th step from now."""

    agents: Mapping[str, float]  # probability of each, if the step happens; the rest up to 1 belongs to agents not named
    survival: float  # probability that the workflow has not ended by this step


@dataclass(frozen=True, slots=True)
class Forecast:
    """The next K steps of one workflow. A forecast with a higher epoch replaces one with a lower epoch."""

    workflow: str
    epoch: int
    made_at: float  # seconds since 1970 (the clock's `wall`)
    steps: tuple[StepForecast, ...]
    predictability: float = 0.0  # R = 1 - H(A'|A) / H(A'), in [0, 1]
    step: int = -1  # number of the step after which it looks ahead, counted by the gateway; -1: none has begun, or unknown
    ended: bool = False  # the workflow has ended; `steps` is empty
    workload: str = ""  # that the workflow is taken to belong to, by a name that it keeps; empty: not known
