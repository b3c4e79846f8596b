"""The predictor's forecasts as they change, wherever the predictor is."""

import asyncio
from collections.abc import AsyncGenerator

from grpc import aio

from pbkv_cluster.core.background import cancel
from pbkv_cluster.core.forecasts.batch import Forecasts
from pbkv_cluster.core.forecasts.forecast import Forecast
from pbkv_cluster.rpc.convert import forecasts_from_wire
from pbkv_cluster.rpc.service_link import ServiceLink, Verdict
from pbkv_cluster.rpc.services import PREDICTOR, Services
from pbkv_cluster.rpc.v1 import predictor_pb2, predictor_pb2_grpc


async def watch_forecasts(services: Services, name: str) -> AsyncGenerator[Forecast]:
    """Yields the present forecast of every open workflow, then each forecast that changes.

    If the predictor is lost, it is looked for again, and the present forecast of every open workflow comes once more.

    Args:
        services: finds the predictor.
        name: of this subscriber, for the predictor's log.

    Raises:
        PbkvError: the predictor was not reached the first time.
    """
    batches: asyncio.Queue[Forecasts | Exception] = asyncio.Queue(maxsize=1)

    async def watch(channel: aio.Channel) -> Verdict:
        stub = predictor_pb2_grpc.PredictorServiceStub(channel)
        async for batch in stub.WatchForecasts(predictor_pb2.WatchForecastsRequest(subscriber=name)):
            link.connected()
            await batches.put(forecasts_from_wire(batch))
        return Verdict.LOST

    async def run() -> None:
        try:
            await link.run(must_connect=True)
        except Exception as error:  # noqa: BLE001  # raised to the consumer
            await batches.put(error)

    link = ServiceLink(services, PREDICTOR, watch, purpose="forecasts")
    running = asyncio.create_task(run(), name="forecasts")
    try:
        while True:
            batch = await batches.get()
            if isinstance(batch, Exception):
                raise batch
            for forecast in batch:
                yield forecast
    finally:
        await cancel(running)
