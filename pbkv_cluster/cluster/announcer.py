"""Keeps a record in the directory for as long as its member runs."""

import asyncio
import logging
from collections.abc import Awaitable, Callable

from pbkv_cluster.core.background import Background
from pbkv_cluster.core.errors import Unavailable

log = logging.getLogger(__name__)

Call = Callable[[], Awaitable[None]]

_RENEWALS_PER_LEASE = 3


class Announcer:
    """Announces now, and again well within every lease. While Redis is away it keeps trying."""

    def __init__(self, announce: Call, withdraw: Call, lease_s: float) -> None:
        self._announce = announce
        self._withdraw = withdraw
        self._interval_s = lease_s / _RENEWALS_PER_LEASE
        self._background = Background()

    async def start(self) -> None:
        await self._once(self._announce)
        self._background.start(self._run(), "announcer")

    async def wait(self) -> None:
        """Returns never while all is well; raises what ended it."""
        await self._background.failure()

    async def stop(self) -> None:
        await self._background.stop()
        await self._once(self._withdraw)

    async def _run(self) -> None:
        while True:
            await asyncio.sleep(self._interval_s)
            await self._once(self._announce)

    @staticmethod
    async def _once(call: Call) -> None:
        try:
            await call()
        except Unavailable as error:
            log.warning("the directory cannot be reached, the lease runs: %s", error)
