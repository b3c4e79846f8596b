"""Applies updates of the access models to the cache's policy."""

import asyncio
import logging
from typing import NoReturn

from pbkv_cluster.core.errors import Unavailable
from pbkv_cluster.gpu_worker.engine.engine_thread import EngineThread
from pbkv_cluster.reuse.model.access_model import AccessUpdate
from pbkv_cluster.reuse.model.access_models import ANY

log = logging.getLogger(__name__)

_MAX_QUEUED = 1024  # updates of at most 256 KiB before compression; all models of some workloads are fewer


class ModelUpdateConsumer:
    """Applies updates one after the other, in a task of its own, so that forecasts of the same stream do not wait for them."""

    def __init__(self, thread: EngineThread) -> None:
        self._thread = thread
        self._queue: asyncio.Queue[bytes] = asyncio.Queue(_MAX_QUEUED)
        self.applied = 0  # updates
        self.workflows = 0  # that the models have learnt from

    async def consume(self, update: bytes) -> None:
        """Queues an update; waits only while the queue is full."""
        await self._queue.put(update)

    async def run(self) -> NoReturn:
        """Applies what is queued, until cancelled."""
        while True:
            data = await self._queue.get()
            try:
                update = await asyncio.to_thread(AccessUpdate.from_bytes, data)
                await self._apply(update)
            except ValueError as error:
                log.warning("a model update is skipped: %s", error)
            except Unavailable:
                log.debug("a model update is lost: the engine has ended, as its thread reports")

    async def _apply(self, update: AccessUpdate) -> None:
        await self._thread.call(lambda engine: engine.cache.workflows.learnt(update))
        self.applied += 1
        if update.workload == ANY:
            self.workflows = update.workflows or self.workflows
