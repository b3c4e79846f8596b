"""The real predictor, between the simulated workflows and the cache: takes their events and applies its forecasts at once."""

import random
from collections.abc import Callable
from dataclasses import replace

from pbkv_cluster.core.clock import Clock
from pbkv_cluster.core.config import PredictorConfig
from pbkv_cluster.core.errors import InvalidArgument
from pbkv_cluster.core.forecasts.forecast import Forecast, StepForecast
from pbkv_cluster.core.workflow.events import EventKind, WorkflowEvent
from pbkv_cluster.predictor_service.predictor import PREDICTORS


class Forecaster:
    """Passes events to one predictor, and its forecasts, or random ones instead, to a cache."""

    def __init__(
        self,
        config: PredictorConfig,
        clock: Clock,
        apply: Callable[[Forecast], object],
        state: bytes | None = None,
        noise: float = 0.0,
        seed: int = 0,
        predicts: bool = True,
    ) -> None:
        """Args:
            config: names the predictor.
            clock: stamps the forecasts.
            apply: takes each forecast.
            state: of a predictor that was trained before, from `trained_state`.
            noise: share of the forecasts that are replaced by random ones.
            seed: of the noise.
            predicts: False if the policy ignores what forecasts say: they are empty then, and the predictor sees no events.

        Raises:
            InvalidArgument: an unknown predictor, or a share outside 0 to 1.
        """
        if not 0 <= noise <= 1:
            raise InvalidArgument("noise", f"must be from 0 to 1, got {noise}")
        self._predictor = PREDICTORS.get(config.model)(config)
        if state is not None:
            self._predictor.restore(state)
        self._clock = clock
        self._apply = apply
        self._noise = noise
        self._predicts = predicts
        self._draws = random.Random(f"pbkv-noise/{seed}")
        self._agents: dict[str, None] = {}  # seen so far, in order
        self._epoch = 0

    def report(self, event: WorkflowEvent) -> None:
        """Shows the predictor an event, and applies the workflow's new forecast unless the workflow has ended."""
        if self._predicts:
            self._predictor.observe(event)
        if event.agent:
            self._agents[event.agent] = None
        if event.kind is not EventKind.WORKFLOW_ENDED:
            self._epoch += 1
            for forecast in self._forecasts(event.workflow):
                self._apply(forecast)
        if self._predicts:
            self._predictor.learn()

    def _forecasts(self, workflow: str) -> list[Forecast]:
        now = self._clock.wall()
        if not self._predicts:
            return [Forecast(workflow, self._epoch, now, ())]
        return [self._with_noise(forecast) for forecast in self._predictor.forecast([workflow], self._epoch, now)]

    def _with_noise(self, forecast: Forecast) -> Forecast:
        if not self._noise or self._draws.random() >= self._noise:
            return forecast
        return replace(forecast, steps=tuple(self._random_step() for _ in forecast.steps))

    def _random_step(self) -> StepForecast:
        weights = {agent: self._draws.expovariate(1.0) for agent in self._agents}
        total = sum(weights.values())
        return StepForecast({agent: weight / total for agent, weight in weights.items()}, self._draws.random())
