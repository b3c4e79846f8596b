"""Forecasts on their way into vLLM: nobody can be told there of a forecast but with a request, so the next ones carry them.

That is soon enough for whoever evicts by them: KV is evicted to make room for a request.
"""

from dataclasses import replace

from grpc import aio

from pbkv_cluster.core.clock import Clock
from pbkv_cluster.core.forecasts.forecast import Forecast
from pbkv_cluster.integrations.kv_hints import PROTOCOL_VERSION, HintMaker, KvHintsEnvelope
from pbkv_cluster.rpc.convert import forecasts_from_wire
from pbkv_cluster.rpc.service_link import ServiceLink, Verdict
from pbkv_cluster.rpc.services import PREDICTOR, Services
from pbkv_cluster.rpc.v1 import predictor_pb2, predictor_pb2_grpc

_AT_ONCE = 64  # forecasts that one request carries; the rest go with the next ones


class HintBook:
    """The latest forecast of each workflow, and which of them vLLM has not been told."""

    def __init__(self, maker: HintMaker, clock: Clock, max_workflows: int) -> None:
        """Args:
        maker: makes hints of forecasts.
        clock: for when a workflow has ended.
        max_workflows: that are kept; beyond, the one heard of longest ago is dropped.
        """
        self.received = 0
        self.made_at = 0.0  # of the latest forecast, in seconds since the epoch by the predictor's clock; 0: there was none
        self._maker = maker
        self._clock = clock
        self._max_workflows = max_workflows
        self._latest: dict[str, Forecast] = {}
        self._untold: dict[str, Forecast] = {}
        self._envelopes = 0

    def heard(self, forecast: Forecast) -> None:
        """The predictor has forecast a workflow, or has seen its end."""
        self.received += 1
        self.made_at = max(self.made_at, forecast.made_at)
        self._put(forecast)

    def retired(self, workflow: str) -> None:
        """A workflow has ended. The predictor may be away and not tell."""
        latest = self._latest.get(workflow)
        if latest is not None:
            ended = replace(latest, epoch=latest.epoch + 1, made_at=self._clock.wall(), steps=(), ended=True)
            self._put(ended)

    def envelope(self, workflow: str) -> KvHintsEnvelope | None:
        """The hints that a request of a workflow carries: its own forecast, and those that vLLM has not been told."""
        told = [self._latest[workflow]] if workflow in self._latest else []
        self._untold.pop(workflow, None)
        while self._untold and len(told) < _AT_ONCE:
            told.append(self._untold.pop(next(iter(self._untold))))
        if not told:
            return None
        self._envelopes += 1
        actions = [action for forecast in told for action in self._maker.envelope(forecast).actions]
        return KvHintsEnvelope(PROTOCOL_VERSION, f"{self._envelopes}:{workflow}", tuple(actions))

    def _put(self, forecast: Forecast) -> None:
        for forecasts in (self._latest, self._untold):
            forecasts.pop(forecast.workflow, None)  # so that it becomes the last one
        self._untold[forecast.workflow] = forecast
        if not forecast.ended:
            self._latest[forecast.workflow] = forecast
        for forecasts in (self._latest, self._untold):
            if len(forecasts) > self._max_workflows:
                del forecasts[next(iter(forecasts))]


class ForecastFeed:
    """Takes the predictor's broadcast."""

    def __init__(self, services: Services, worker_id: str, book: HintBook) -> None:
        """Args:
        services: finds the predictor.
        worker_id: the predictor sends forecasts of those workflows that have had a step placed on this worker.
        book: takes the forecasts.
        """
        self._worker_id = worker_id
        self._book = book
        self._link = ServiceLink(services, PREDICTOR, self._watch, purpose="forecasts")

    @property
    def is_connected(self) -> bool:
        """Whether the broadcast arrives."""
        return self._link.is_connected

    async def run(self) -> None:
        """Takes forecasts for ever."""
        await self._link.run()

    async def _watch(self, channel: aio.Channel) -> Verdict:
        request = predictor_pb2.WatchForecastsRequest(subscriber=self._worker_id, placed_only=True)
        async for batch in predictor_pb2_grpc.PredictorServiceStub(channel).WatchForecasts(request):
            self._link.connected()
            for forecast in forecasts_from_wire(batch):
                self._book.heard(forecast)
        return Verdict.LOST
