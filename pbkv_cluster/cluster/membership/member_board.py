"""The entries of all members in the directory, as the process that started the cluster sees them."""

import asyncio
import logging
import threading
from collections.abc import Sequence
from typing import Any

from pbkv_cluster.core.errors import Unavailable
from pbkv_cluster.store.cluster_index import Directory, MemberEntry, connect

log = logging.getLogger(__name__)

_RENEWALS_PER_TTL = 3


class MemberBoard:
    """Announces entries from a thread of its own: who restarts members must not wait for Redis."""

    def __init__(self, redis_url: str, cluster: str, ttl_s: float) -> None:
        """Args:
        redis_url: of the directory.
        cluster: name of the cluster.
        ttl_s: seconds after which an entry is gone if this process no longer renews it.
        """
        self._redis_url, self._cluster, self._ttl_s = redis_url, cluster, ttl_s
        self._entries: Sequence[MemberEntry] = ()
        self._wake = threading.Event()
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="member-board", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def show(self, entries: Sequence[MemberEntry]) -> None:
        """Announces these entries from now on; returns at once."""
        self._entries = entries
        self._wake.set()

    def stop(self) -> None:
        """Withdraws the entries. May be called again."""
        self._stopping = True
        self._wake.set()
        if self._thread.is_alive():
            self._thread.join()

    def _run(self) -> None:
        while not self._stopping:
            self._wake.wait(self._ttl_s / _RENEWALS_PER_TTL)
            self._wake.clear()
            asyncio.run(self._each_entry(Directory.announce_member))
        asyncio.run(self._each_entry(Directory.withdraw_member))

    async def _each_entry(self, call: Any) -> None:
        redis = connect(self._redis_url)
        directory = Directory(redis, self._cluster, self._ttl_s)
        try:
            await asyncio.gather(*(call(directory, entry) for entry in self._entries))
        except Unavailable as error:
            log.info("the directory does not answer: %s", error)
        finally:
            await redis.aclose()
