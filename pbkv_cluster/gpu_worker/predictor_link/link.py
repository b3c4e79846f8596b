"""Everything that a worker and the predictor tell each other: forecasts and model updates in, access logs out."""

from typing import NoReturn

from grpc import aio

from pbkv_cluster.core.background import Background
from pbkv_cluster.gpu_worker.engine.engine_thread import EngineThread
from pbkv_cluster.gpu_worker.predictor_link.access_logs import AccessReporter
from pbkv_cluster.gpu_worker.predictor_link.forecasts import ForecastConsumer
from pbkv_cluster.gpu_worker.predictor_link.model_updates import ModelUpdateConsumer
from pbkv_cluster.rpc.convert import forecasts_from_wire
from pbkv_cluster.rpc.service_link import LinkState, ServiceLink, Verdict
from pbkv_cluster.rpc.services import PREDICTOR, Services
from pbkv_cluster.rpc.v1 import predictor_pb2, predictor_pb2_grpc


class PredictorLink:
    """Subscribes to the predictor's broadcast and reports to it. While the predictor is away, the cache keeps what it has."""

    def __init__(self, services: Services, thread: EngineThread, worker_id: str, learns: bool) -> None:
        """Args:
        services: finds the predictor.
        thread: the engine's.
        worker_id: the predictor sends forecasts of those workflows that have had a step placed on this worker.
        learns: the cache's policy uses the access model: it wants updates, and has access logs to report.
        """
        self._worker_id = worker_id
        self._background = Background()
        self._broadcast = ServiceLink(services, PREDICTOR, self._watch, purpose="forecasts")
        self.forecasts = ForecastConsumer(thread)
        self.model_updates = ModelUpdateConsumer(thread) if learns else None
        self.access_logs = AccessReporter(services, thread) if learns else None

    @property
    def state(self) -> LinkState:
        """State of the subscription."""
        return self._broadcast.state

    @property
    def is_connected(self) -> bool:
        """Whether the predictor's broadcast arrives."""
        return self._broadcast.is_connected

    def start(self) -> None:
        self._background.start(self._broadcast.run(), "forecasts")
        if self.model_updates is not None:
            self._background.start(self.model_updates.run(), "model updates")
        if self.access_logs is not None:
            self._background.start(self.access_logs.run(), "access logs")

    async def wait(self) -> NoReturn:
        """Runs until a part fails, then raises its error."""
        await self._background.failure()

    async def stop(self) -> None:
        await self._background.stop()

    async def _watch(self, channel: aio.Channel) -> Verdict:
        """Hands each part of the broadcast to its consumer."""
        request = predictor_pb2.WatchForecastsRequest(
            subscriber=self._worker_id, access_model=self.model_updates is not None, placed_only=True
        )
        async for batch in predictor_pb2_grpc.PredictorServiceStub(channel).WatchForecasts(request):
            self._broadcast.connected()
            await self.forecasts.consume(forecasts_from_wire(batch))
            if batch.access_model and self.model_updates is not None:
                await self.model_updates.consume(batch.access_model)
        return Verdict.LOST
