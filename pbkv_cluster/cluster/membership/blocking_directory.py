"""The directory for threads that are not asynchronous."""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from redis.asyncio import Redis

from pbkv_cluster.store.cluster_index import Directory, connect

T = TypeVar("T")


class BlockingDirectory:
    """One event loop and one connection, kept from call to call: whoever asks every second would spend more on these than on
    the question. For one thread at a time.
    """

    def __init__(self, redis_url: str, cluster: str, ttl_s: float) -> None:
        """Args:
        redis_url: of the directory.
        cluster: name of the cluster.
        ttl_s: of entries in the directory.
        """
        self._redis_url, self._cluster, self._ttl_s = redis_url, cluster, ttl_s
        self._open: tuple[asyncio.Runner, Redis, Directory] | None = None

    def call(self, ask: Callable[[Directory], Coroutine[Any, Any, T]]) -> T:
        """What `ask` returns.

        Raises:
            Unavailable: Redis does not answer.
        """
        if self._open is None:
            redis = connect(self._redis_url, self._cluster)
            self._open = asyncio.Runner(), redis, Directory(redis, self._cluster, self._ttl_s)
        runner, _, directory = self._open
        return runner.run(ask(directory))

    def close(self) -> None:
        """Ends the connection; the next call opens another. May be called again."""
        if self._open is not None:
            (runner, redis, _), self._open = self._open, None
            runner.run(redis.aclose())
            runner.close()
