"""What the process that runs the cluster tells Prometheus: where all members serve their metrics, and how the members do.

It is this process because it outlives every member: when the gateway is down, Prometheus still hears of it from here.
"""

import json
from collections.abc import Callable, Mapping, Sequence

from pbkv_cluster.cluster.membership.announcer import Announcer
from pbkv_cluster.cluster.membership.member import MemberContext
from pbkv_cluster.cluster.membership.metrics_endpoint import MetricsEndpoint, metrics_audience
from pbkv_cluster.cluster.membership.redis_connection import RedisConnection
from pbkv_cluster.core.background import first_failure_of
from pbkv_cluster.core.errors import Unavailable
from pbkv_cluster.core.metrics import names
from pbkv_cluster.core.metrics.figures import Figures
from pbkv_cluster.core.metrics.metric import Source
from pbkv_cluster.rpc.http_server import HttpAnswer, Route
from pbkv_cluster.rpc.security import this_process
from pbkv_cluster.rpc.services import DISCOVERY_PATH, HEAD
from pbkv_cluster.store.cluster_index import EndpointEntry, MemberEntry


class Head:
    """The endpoint of the process that runs the cluster, on an event loop of its own."""

    def __init__(
        self, context: MemberContext, members: Callable[[], Sequence[MemberEntry]], standby_pid: Callable[[], int]
    ) -> None:
        """Args:
        context: as that of a member; its configuration has the port.
        members: the members as the supervisor sees them; called on the event loop's thread.
        standby_pid: process id of the standby that is ready; 0: there is none.
        """
        self._context = context
        self._members = members
        self._standby_pid = standby_pid
        self._redis = RedisConnection(context)
        discovery = {DISCOVERY_PATH: Route("GET", self._discover, audience=metrics_audience())}
        self._endpoint = MetricsEndpoint(self._put, self._redis.directory, HEAD, Source.HEAD, context.node_id, discovery)
        self._announcer: Announcer | None = None

    def prepare(self) -> None:
        """Everything is imported already."""

    async def start(self) -> str:
        """Serves, and tells the directory where. Returns the address, host:port.

        Raises:
            StartupError: the port cannot be bound.
        """
        address = await self._endpoint.start(self._context.host, self._context.config.metrics.port)
        self._announcer = Announcer.of_service(self._redis.directory, HEAD, address)
        await self._announcer.start()
        return address

    async def wait(self) -> None:
        """Runs until a part fails, then raises its error."""
        assert self._announcer is not None, "the head was not started"
        await first_failure_of(self._endpoint.wait, self._announcer.wait)

    async def stop(self) -> None:
        if self._announcer is not None:
            await self._announcer.stop()
        await self._endpoint.stop()
        await self._redis.close()

    async def _put(self, figures: Figures) -> None:
        for member in self._members():
            figures.put(names.MEMBER_UP, member.up, member.name)
            figures.put(names.MEMBER_RESTARTS, member.restarts, member.name)
        figures.put(names.STANDBY_READY, bool(self._standby_pid()))
        try:
            await self._redis.directory.service(HEAD)
        except Unavailable:
            figures.put(names.REDIS_REACHABLE, 0)
        else:
            figures.put(names.REDIS_REACHABLE, 1)

    async def _discover(self, headers: Mapping[str, str], body: bytes) -> HttpAnswer:
        """The members in the directory, in the format of Prometheus' `http_sd`.

        While Redis is away, the answer is 503 and Prometheus keeps the members that it knows.
        """
        entries = await self._redis.directory.endpoints()
        return HttpAnswer(200, "application/json", json.dumps([self._target(entry) for entry in entries]).encode())

    def _target(self, entry: EndpointEntry) -> dict[str, object]:
        # `instance` would by default be the address, which changes when a member starts again: its series would break.
        return {
            "targets": [entry.address],
            "labels": {
                "__scheme__": this_process().http,
                "instance": entry.member,
                "kind": entry.kind,
                "node": entry.node_id,
                "cluster": self._context.config.cluster.name,
            },
        }
