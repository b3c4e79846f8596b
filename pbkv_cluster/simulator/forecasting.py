"""The real predictor between the simulated workflows and the cache: events in, forecasts applied at once."""

import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

from pbkv_cluster.core.clock import Clock
from pbkv_cluster.core.config import PredictorConfig
from pbkv_cluster.core.errors import InvalidArgument
from pbkv_cluster.core.events import EventKind, WorkflowEvent
from pbkv_cluster.core.forecast import Forecast, StepForecast
from pbkv_cluster.predictor_service.base import PREDICTORS
from pbkv_cluster.simulator.traces import TraceWorkflow


@dataclass(frozen=True, slots=True)
class Moment:
    """Something that happens in a workflow."""

    kind: EventKind
    workflow: str
    workload: str
    agent: str = ""
    call_site: str = ""
    step: int = 0
    prompt_tokens: int = 0
    output_tokens: int = 0


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
            clock: of the events.
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
        self._sequences: dict[str, int] = {}
        self._epoch = 0

    def happened(self, moment: Moment) -> None:
        """Reports an event, and has the workflow's new forecast applied."""
        if not self._heeded:
            if moment.kind is not EventKind.WORKFLOW_ENDED:
                self._epoch += 1
                self._apply(Forecast(moment.workflow, self._epoch, self._clock.wall(), ()))
            return
        sequence = self._sequences.get(moment.workflow, 0)
        self._sequences[moment.workflow] = sequence + 1
        now = self._clock.wall()
        self._predictor.observe(
            WorkflowEvent(
                moment.kind,
                moment.workflow,
                sequence,
                now,
                moment.workload,
                moment.agent,
                moment.call_site,
                moment.step,
                prompt_tokens=moment.prompt_tokens,
                output_tokens=moment.output_tokens,
            )
        )
        if moment.kind is EventKind.WORKFLOW_ENDED:
            del self._sequences[moment.workflow]
            self._predictor.learn()
            return
        if moment.agent:
            self._agents[moment.agent] = None
        self._epoch += 1
        for forecast in self._predictor.forecast([moment.workflow], self._epoch, now):
            self._apply(self._disturbed(forecast))
        self._predictor.learn()

    def train(self) -> None:
        """Has the predictor learn what it has put off: no more is to come."""
        self._predictor.train()

    def state(self) -> bytes:
        """What the predictor has learnt."""
        return self._predictor.dump()

    def _disturbed(self, forecast: Forecast) -> Forecast:
        if not self._noise or self._draws.random() >= self._noise:
            return forecast
        return replace(forecast, steps=tuple(self._random_step() for _ in forecast.steps))

    def _random_step(self) -> StepForecast:
        weights = {agent: self._draws.expovariate(1.0) for agent in self._agents}
        total = sum(weights.values())
        return StepForecast({agent: weight / total for agent, weight in weights.items()}, self._draws.random())


def train(config: PredictorConfig, workflows: Iterable[TraceWorkflow], clock: Clock) -> bytes:
    """What the predictor has learnt after it has seen some workflows, one after the other."""
    forecaster = Forecaster(config, clock, lambda forecast: None)
    for number, workflow in enumerate(workflows):
        name = f"train-{number}:{workflow.id}"
        forecaster.happened(Moment(EventKind.WORKFLOW_STARTED, name, workflow.workload))
        for position, step in enumerate(workflow.steps):
            for kind in (EventKind.STEP_STARTED, EventKind.STEP_FINISHED):
                tokens = step.prompt_tokens, step.output_tokens
                forecaster.happened(Moment(kind, name, workflow.workload, step.agent, step.call_site, position, *tokens))
        forecaster.happened(Moment(EventKind.WORKFLOW_ENDED, name, workflow.workload))
    forecaster.train()
    return forecaster.state()
