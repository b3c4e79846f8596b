"""Tells the process that started a cluster what does not work at members that serve nevertheless."""

from collections.abc import Callable

from pbkv_cluster.cluster.membership.blocking_directory import BlockingDirectory
from pbkv_cluster.core.errors import Unavailable
from pbkv_cluster.store.cluster_index import Directory


class ProblemWatch:
    """Compares the problems in the directory with those that it has told."""

    def __init__(self, redis_url: str, cluster: str, ttl_s: float, report: Callable[[str], None]) -> None:
        """Args:
        redis_url: of the directory.
        cluster: name of the cluster.
        ttl_s: of entries in the directory.
        report: takes one line for each problem that has come or gone.
        """
        self._directory = BlockingDirectory(redis_url, cluster, ttl_s)
        self._report = report
        self._told: set[str] = set()

    def poll(self) -> None:
        """Tells what has changed since the last call. While Redis is away, nothing has."""
        try:
            entries = self._directory.call(Directory.problems)
        except Unavailable:
            return
        present = {f"{entry.member}: {problem}" for entry in entries for problem in entry.problems}
        for problem in sorted(present - self._told):
            self._report(f"problem: {problem}")
        for problem in sorted(self._told - present):
            self._report(f"over: {problem}")
        self._told = present

    def close(self) -> None:
        """Ends the connection."""
        self._directory.close()
