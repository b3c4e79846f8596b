"""The predictor of a sidecar, our own or a cluster's, and its latest forecast of each workflow that is open here."""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing, asynccontextmanager
from pathlib import Path

from pbkv_cluster.core.clock import Clock
from pbkv_cluster.core.config import Config
from pbkv_cluster.core.errors import PbkvError
from pbkv_cluster.core.forecasts.forecast import Forecast
from pbkv_cluster.gateway.routing.router import REUSE_PROBABILITY
from pbkv_cluster.gateway.workflow.open_workflows import OpenWorkflows
from pbkv_cluster.integrations.forecast_stream import watch_forecasts
from pbkv_cluster.integrations.predictor import find_predictor
from pbkv_cluster.rpc.services import PREDICTOR, FixedServices, Services

log = logging.getLogger(__name__)

_AGAIN_S = 5.0  # after which a predictor that was not reached is looked for again


@asynccontextmanager
async def predictor_of(config: Config, address: str, clock: Clock) -> AsyncIterator[Services]:
    """Something that knows where the predictor is: that of a cluster if its address or its Redis is given, else one of our own.

    Our own runs in this process, and keeps what it has learnt in `predictor.state_path` if that is set.
    """
    if address or config.redis.url:
        async with find_predictor(address, config) as services:
            yield services
        return
    from pbkv_cluster.predictor_service.server import PredictorServer

    state = Path(config.predictor.state_path) if config.predictor.state_path else None
    server = PredictorServer(config.predictor, clock, state)
    try:
        yield FixedServices({PREDICTOR: await server.start("127.0.0.1", 0)})
    finally:
        await server.stop()


class ForecastBook:
    """The latest forecasts of open workflows."""

    def __init__(self, services: Services, workflows: OpenWorkflows) -> None:
        """Args:
        services: finds the predictor.
        workflows: that are open here; a cluster's predictor knows others as well.
        """
        self.received = 0
        self._services = services
        self._workflows = workflows
        self._latest: dict[str, Forecast] = {}

    def of(self, workflow: str) -> Forecast | None:
        """The forecast of an open workflow; None: there is none."""
        return self._latest.get(workflow)

    def weight(self, workflow: str) -> Callable[[str], float]:
        """How much the contexts of a workflow's agents count, see `Contexts.tokens`: by how likely each agent is called again.

        Without a forecast, all count the same.
        """
        forecast = self._latest.get(workflow)
        if forecast is None:
            return lambda agent: 1.0
        steps = forecast.steps

        def weigh(agent: str) -> float:
            expected = sum(step.survival * step.agents.get(agent, 0.0) for step in steps)
            return min(expected, 1.0) / REUSE_PROBABILITY

        return weigh

    def drop(self, workflow: str) -> None:
        """A workflow has ended."""
        self._latest.pop(workflow, None)

    async def run(self) -> None:
        """Takes forecasts for ever; while the predictor is not reached, there are none."""
        while True:
            try:
                async with aclosing(watch_forecasts(self._services, "sidecar")) as forecasts:
                    async for forecast in forecasts:
                        self._take(forecast)
            except PbkvError as error:
                log.warning("no forecasts: %s", error)
            await asyncio.sleep(_AGAIN_S)

    def _take(self, forecast: Forecast) -> None:
        if self._workflows.peek(forecast.workflow) is None:
            return
        self.received += 1
        if forecast.ended:
            self.drop(forecast.workflow)
        else:
            self._latest[forecast.workflow] = forecast
