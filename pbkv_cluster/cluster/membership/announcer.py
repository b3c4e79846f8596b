"""Keeps an entry in the directory for as long as its member runs."""

import asyncio
import logging
import os
from collections.abc import Awaitable, Callable
from typing import Self

from pbkv_cluster.core.background import Background
from pbkv_cluster.core.errors import Unavailable
from pbkv_cluster.store.cluster_index import Directory, ServiceEntry

log = logging.getLogger(__name__)

Call = Callable[[], Awaitable[None]]


class Announcer:
    """Announces an entry at once and then every `interval_s` seconds. While Redis is down it keeps trying."""

    def __init__(self, announce: Call, withdraw: Call, interval_s: float) -> None:
        self._announce = announce
        self._withdraw = withdraw
        self._interval_s = interval_s
        self._background = Background()
        self.reaches_redis = False  # at the last try

    @classmethod
    def of_service(cls, directory: Directory, name: str, address: str) -> Self:
        """For a service of this process at `address`."""
        entry = ServiceEntry(name, address, os.getpid())
        return cls(
            lambda: directory.announce_service(entry),
            lambda: directory.withdraw_service(entry),
            directory.renewal_interval_s,
        )

    async def start(self) -> None:
        await self._try(self._announce)
        self._background.start(self._run(), "announcer")

    async def wait(self) -> None:
        """Runs until the announcer fails, then raises its error."""
        await self._background.failure()

    async def stop(self) -> None:
        """Withdraws the entry; if Redis is down, it expires."""
        await self._background.stop()
        await self._try(self._withdraw)

    async def _run(self) -> None:
        while True:
            await asyncio.sleep(self._interval_s)
            await self._try(self._announce)

    async def _try(self, call: Call) -> None:
        try:
            await call()
            self.reaches_redis = True
        except Unavailable as error:
            self.reaches_redis = False
            log.warning("cannot reach the directory, where this member's entry expires unless it is renewed: %s", error)
