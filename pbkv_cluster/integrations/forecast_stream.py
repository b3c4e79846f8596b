"""The predictor's forecasts as they change, for as long as one listens, wherever the predictor is."""

import asyncio
import logging
from collections.abc import AsyncGenerator

from grpc import aio

from pbkv_cluster.core.errors import PbkvError, Unavailable
from pbkv_cluster.core.forecasts.forecast import Forecast
from pbkv_cluster.gateway.predictor_feed.feed import PREDICTOR, Services
from pbkv_cluster.rpc.channel import connect
from pbkv_cluster.rpc.convert import forecasts_from_wire
from pbkv_cluster.rpc.errors import from_rpc
from pbkv_cluster.rpc.v1 import predictor_pb2, predictor_pb2_grpc

log = logging.getLogger(__name__)

_PAUSE_S = 0.5  # before the predictor is looked for again


async def watch_forecasts(predictor: Services, name: str) -> AsyncGenerator[Forecast]:
    """First the present forecast of every open workflow, then those that change. A predictor that is lost is looked for again,
    and all begins anew.

    Args:
        predictor: tells where it is.
        name: of the listener, for the predictor's logs.

    Raises:
        PbkvError: it was not reached the first time.
    """
    heard = False
    while True:
        try:
            record = await predictor.service(PREDICTOR)
            if record is None:
                raise Unavailable("no predictor is announced")
            async with connect(record.address) as channel:
                stub = predictor_pb2_grpc.PredictorServiceStub(channel)
                async for batch in stub.WatchForecasts(predictor_pb2.WatchForecastsRequest(subscriber=name)):
                    heard = True
                    for forecast in forecasts_from_wire(batch):
                        yield forecast
        except aio.AioRpcError as error:
            if not heard:
                raise from_rpc(error) from error
            log.warning("no forecasts: %s", error.details() or error.code().name)
        except PbkvError as error:
            if not heard:
                raise
            log.warning("no forecasts: %s", error)
        await asyncio.sleep(_PAUSE_S)
