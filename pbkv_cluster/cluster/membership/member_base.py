"""What all members share: a connection to Redis, entries in the directory, and parts that run until one fails."""

import gc
import os
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack

from pbkv_cluster.cluster.membership.announcer import Announcer
from pbkv_cluster.cluster.membership.member import MemberContext
from pbkv_cluster.cluster.membership.metrics_endpoint import MetricsEndpoint, PutFigures
from pbkv_cluster.cluster.membership.problems.problem_report import ProblemReport
from pbkv_cluster.cluster.membership.redis_connection import RedisConnection
from pbkv_cluster.core.background import first_failure_of
from pbkv_cluster.core.metrics.metric import Source
from pbkv_cluster.store.cluster_index import ServiceEntry


class MemberBase:
    """What all members share: a connection to Redis, an entry in the directory, and parts that run until one fails."""

    def __init__(self, context: MemberContext) -> None:
        self._context = context
        self._redis = RedisConnection(context)
        self._stack = AsyncExitStack()  # stops the parts in reverse order, even if one of them raises
        self._stack.push_async_callback(self._redis.close)
        self._failures: list[Callable[[], Awaitable[None]]] = []  # each runs until its part fails, then raises

    def _add_part(self, stop: Callable[[], Awaitable[None]], wait: Callable[[], Awaitable[None]] | None = None) -> None:
        """Registers a part that is about to start: how to stop it, and how to wait for its failure."""
        self._stack.push_async_callback(stop)
        if wait is not None:
            self._failures.append(wait)

    async def wait(self) -> None:
        """Runs until a part of the member fails, then raises its error."""
        await first_failure_of(*self._failures)

    async def stop(self) -> None:
        await self._stack.aclose()

    async def _announce_service(self, name: str, address: str) -> None:
        entry = ServiceEntry(name, address, os.getpid())
        directory = self._redis.directory
        await self._announce(lambda: directory.announce_service(entry), lambda: directory.withdraw_service(entry))

    async def _serve_metrics(self, put: PutFigures, kind: Source) -> None:
        """Serves the metrics of this member, unless that is switched off."""
        if not self._context.config.metrics.enabled:
            return
        name = self._context.name or kind
        endpoint = MetricsEndpoint(put, self._redis.directory, name, kind, self._context.node_id)
        self._add_part(endpoint.stop, endpoint.wait)
        await endpoint.start(self._context.host)

    async def _report_problems(self, name: str, problems: Callable[[], Sequence[str]]) -> None:
        """Keeps the directory informed of what does not work as it should."""
        report = ProblemReport(self._redis.directory, name, problems)
        await self._announce(report.announce, report.withdraw)

    async def _announce(self, announce: Callable[[], Awaitable[None]], withdraw: Callable[[], Awaitable[None]]) -> None:
        announcer = Announcer(announce, withdraw, self._redis.directory.renewal_interval_s)
        self._add_part(announcer.stop, announcer.wait)
        await announcer.start()


def collect_rarely() -> None:
    """Makes full garbage collections rare; for a process that serves, once it has started.

    What it has loaded stays until it ends, and is no longer looked at. What lives long besides, such as open workflows, has
    no cycles, and a full collection looks at all of it: a tenth of a second at some hundred workflows, and nothing is served.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(5_000, 20, 100)
