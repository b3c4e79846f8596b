"""The real predictor between the simulated workflows and the cache: events in, forecasts applied at once."""

import random
from collections.abc import Callable, Iterable
from dataclasses import replace

from pbkv_cluster.core.clock import Clock
from pbkv_cluster.core.config import PredictorConfig
from pbkv_cluster.core.errors import InvalidArgument
from pbkv_cluster.core.events import EventKind, WorkflowEvent
from pbkv_cluster.core.forecasts.forecast import Forecast, StepForecast
from pbkv_cluster.predictor_service.predictor import PREDICTORS
from pbkv_cluster.simulator.evaluation.prediction import teach
from pbkv_cluster.simulator.traces.step_traces import TraceWorkflow
from pbkv_cluster.simulator.workload.events import VOCAB, events_of
from pbkv_cluster.simulator.workload.prompts import PromptBuilder


class Forecaster:
    """Tells one predictor what happens, and hands on what it says, or noise in its place."""

    def __init__(
        self,
        config: PredictorConfig,
        clock: Clock,
        apply: Callable[[Forecast], object],
        state: bytes | None = None,
        noise: float = 0.0,
        seed: int = 0,
        heeded: bool = True,
    ) -> None:
        """Args:
            config: names the predictor.
            clock: stamps the forecasts.
            apply: takes each forecast.
            state: what the predictor has learnt before, from `train`.
            noise: share of forecasts that are replaced by random ones.
            seed: of the noise.
            heeded: whether anyone reads what the forecasts say; if not, they are empty, and the predictor learns nothing.

        Raises:
            InvalidArgument: an unknown predictor, or a share that is none.
        """
        if not 0 <= noise <= 1:
            raise InvalidArgument("noise", f"must be from 0 to 1, got {noise}")
        self._predictor = PREDICTORS.get(config.model)(config)
        if state is not None:
            self._predictor.restore(state)
        self._clock = clock
        self._apply = apply
        self._noise = noise
        self._heeded = heeded
        self._draws = random.Random(f"pbkv-noise/{seed}")
        self._agents: dict[str, None] = {}  # seen so far, in order
        self._epoch = 0

    def happened(self, event: WorkflowEvent) -> None:
        """Reports an event, and has the workflow's new forecast applied."""
        over = event.kind is EventKind.WORKFLOW_ENDED
        if self._heeded:
            self._predictor.observe(event)
        if event.agent:
            self._agents[event.agent] = None
        if not over:
            self._epoch += 1
            for forecast in self._forecasts(event.workflow):
                self._apply(forecast)
        if self._heeded:
            self._predictor.learn()

    def _forecasts(self, workflow: str) -> list[Forecast]:
        now = self._clock.wall()
        if not self._heeded:
            return [Forecast(workflow, self._epoch, now, ())]
        return [self._disturbed(forecast) for forecast in self._predictor.forecast([workflow], self._epoch, now)]

    def _disturbed(self, forecast: Forecast) -> Forecast:
        if not self._noise or self._draws.random() >= self._noise:
            return forecast
        return replace(forecast, steps=tuple(self._random_step() for _ in forecast.steps))

    def _random_step(self) -> StepForecast:
        weights = {agent: self._draws.expovariate(1.0) for agent in self._agents}
        total = sum(weights.values())
        return StepForecast({agent: weight / total for agent, weight in weights.items()}, self._draws.random())


def train(config: PredictorConfig, workflows: Iterable[TraceWorkflow]) -> bytes:
    """What the predictor has learnt after it has seen some workflows, one after the other."""
    predictor, prompts = PREDICTORS.get(config.model)(config), PromptBuilder(VOCAB)
    teach(
        predictor,
        (events_of(workflow, f"train-{number}:{workflow.id}", prompts) for number, workflow in enumerate(workflows)),
    )
    return predictor.dump()
