"""Tells the process that started a cluster what does not work at members that serve nevertheless."""

import asyncio
from collections.abc import Callable

from pbkv_cluster.core.errors import Unavailable
from pbkv_cluster.store.cluster_index import Directory, connect


class ProblemWatch:
    """Compares the problems in the directory with those that it has told."""

    def __init__(self, redis_url: str, cluster: str, ttl_s: float, report: Callable[[str], None]) -> None:
        """Args:
        redis_url: of the directory.
        cluster: name of the cluster.
        ttl_s: of entries in the directory.
        report: takes one line for each problem that has come or gone.
        """
        self._redis_url, self._cluster, self._ttl_s = redis_url, cluster, ttl_s
        self._report = report
        self._told: set[str] = set()

    def poll(self) -> None:
        """Tells what has changed since the last call. While Redis is away, nothing has."""
        try:
            present = asyncio.run(self._read())
        except Unavailable:
            return
        for problem in sorted(present - self._told):
            self._report(f"problem: {problem}")
        for problem in sorted(self._told - present):
            self._report(f"over: {problem}")
        self._told = present

    async def _read(self) -> set[str]:
        redis = connect(self._redis_url, self._cluster)
        try:
            entries = await Directory(redis, self._cluster, self._ttl_s).problems()
        finally:
            await redis.aclose()
        return {f"{entry.member}: {problem}" for entry in entries for problem in entry.problems}
