"""Applies the predictor's forecasts to the cache."""

from pbkv_cluster.core.forecasts.batch import Forecasts
from pbkv_cluster.gpu_worker.engine.engine_thread import EngineThread


class ForecastConsumer:
    """Re-keys the eviction candidates of the workflows that forecasts are about."""

    def __init__(self, thread: EngineThread) -> None:
        self._thread = thread
        self.applied = 0  # forecasts that changed a workflow of this worker
        self.made_at = 0.0  # of the latest forecast, in seconds since the epoch by the predictor's clock; 0: there was none

    async def consume(self, forecasts: Forecasts) -> None:
        """Returns when the cache has taken them.

        Raises:
            Unavailable: the engine has ended.
        """
        if each := list(forecasts):
            self.made_at = max(self.made_at, *(forecast.made_at for forecast in each))
            self.applied += await self._thread.call(lambda engine: sum(engine.cache.apply(forecast) for forecast in each))
