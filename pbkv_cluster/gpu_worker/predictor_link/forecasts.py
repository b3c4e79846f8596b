"""Listens to the predictor and folds what it says into the cache: forecasts, and what has been learnt of finished workflows."""

import asyncio
import logging
from collections.abc import Awaitable, Callable

from grpc import aio

from pbkv_cluster.core.background import Background
from pbkv_cluster.core.errors import PbkvError
from pbkv_cluster.core.forecasts.forecast import Forecast
from pbkv_cluster.gpu_worker.engine.engine import Engine
from pbkv_cluster.gpu_worker.engine.engine_thread import EngineThread
from pbkv_cluster.reuse.model.access_model import AccessUpdate
from pbkv_cluster.rpc.channel import connect
from pbkv_cluster.rpc.convert import forecasts_from_wire
from pbkv_cluster.rpc.v1 import predictor_pb2, predictor_pb2_grpc

log = logging.getLogger(__name__)

AddressSource = Callable[[], Awaitable[str | None]]
"""Tells where a service is now, host:port; None: nowhere. Raises Unavailable when that cannot be found out."""

_PAUSE_S = 0.5  # before the predictor is looked for again


class ForecastListener:
    """Stays subscribed to the predictor, wherever it is. While it is away the cache goes on with what it has."""

    def __init__(self, predictor: AddressSource, thread: EngineThread, name: str, learns: bool) -> None:
        """Args:
        predictor: tells where it is.
        thread: the engine's.
        name: of the worker: the predictor sends forecasts of the workflows that the gateway has placed there.
        learns: the cache wants the access model too.
        """
        self._predictor = predictor
        self._thread = thread
        self._name = name
        self._learns = learns
        self._background = Background()
        self._connected = False
        self.applied = 0  # forecasts that changed a workflow this worker holds
        self.access_updates = 0  # applied
        self.access_workflows = 0  # that the access model has learnt from

    def start(self) -> None:
        self._background.start(self._run(), "forecasts")

    async def wait(self) -> None:
        """Returns never while all is well; raises what ended it."""
        await self._background.failure()

    async def stop(self) -> None:
        await self._background.stop()

    async def _run(self) -> None:
        while True:
            try:
                address = await self._predictor()
                if address is not None:
                    await self._watch(address)
            except PbkvError as error:
                self._away(str(error))
            except aio.AioRpcError as error:
                self._away(error.details() or error.code().name)
            await asyncio.sleep(_PAUSE_S)

    async def _watch(self, address: str) -> None:
        async with connect(address) as channel:
            stub = predictor_pb2_grpc.PredictorServiceStub(channel)
            request = predictor_pb2.WatchForecastsRequest(subscriber=self._name, access_model=self._learns, placed_only=True)
            async for batch in stub.WatchForecasts(request):
                if not self._connected:
                    self._connected = True
                    log.info("forecasts come from %s", address)
                forecasts = list(forecasts_from_wire(batch))
                if forecasts:
                    self.applied += await self._thread.call(_applier(forecasts))
                if batch.access_model and self._learns:
                    await self._learn(batch.access_model)

    async def _learn(self, data: bytes) -> None:
        try:
            update = await asyncio.to_thread(AccessUpdate.from_bytes, data)
        except ValueError as error:
            log.warning("an update from the predictor is left out: %s", error)
            return
        await self._thread.call(lambda engine: engine.cache.workflows.learnt(update))
        self.access_updates += 1
        self.access_workflows = update.workflows or self.access_workflows

    def _away(self, why: str) -> None:
        if self._connected:
            log.warning("no forecasts: %s; the cache goes on without", why)
        self._connected = False


def _applier(forecasts: list[Forecast]) -> Callable[[Engine], int]:
    return lambda engine: sum(engine.cache.apply(forecast) for forecast in forecasts)
