"""Applies the predictor's forecasts to the cache."""

from pbkv_cluster.core.forecasts.batch import Forecasts
from pbkv_cluster.gpu_worker.engine.engine_thread import EngineThread


class ForecastConsumer:
    """Re-keys the eviction candidates of the workflows that forecasts are about."""

    def __init__(self, thread: EngineThread) -> None:
        self._thread = thread
        self.applied = 0  # forecasts that changed a workflow of this worker

    async def consume(self, forecasts: Forecasts) -> None:
        """Returns when the cache has taken them.

        Raises:
            Unavailable: the engine has ended.
        """
        if each := list(forecasts):
            self.applied += await self._thread.call(lambda engine: sum(engine.cache.apply(forecast) for forecast in each))
