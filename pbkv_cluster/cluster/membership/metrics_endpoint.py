"""Serves one process's metrics to Prometheus, and tells the directory where."""

from collections.abc import Awaitable, Callable, Mapping

from pbkv_cluster import __version__
from pbkv_cluster.cluster.membership.announcer import Announcer
from pbkv_cluster.core.metrics import names
from pbkv_cluster.core.metrics.figures import CONTENT_TYPE, Figures
from pbkv_cluster.rpc.http_server import Audience, HttpAnswer, HttpServer, Route
from pbkv_cluster.rpc.security import this_process
from pbkv_cluster.store.cluster_index import Directory, EndpointEntry

METRICS_PATH = "/metrics"


def metrics_audience() -> Audience:
    """Who may read metrics, and where they are."""
    return Audience.EVERYBODY if this_process().open_metrics else Audience.OPERATORS


PutFigures = Callable[[Figures], Awaitable[None]]
"""Adds a process's metrics to a scrape; may raise Unavailable."""


class MetricsEndpoint:
    """`GET /metrics` on a port of its own, on the event loop of the member, which alone may read what it counts."""

    def __init__(
        self,
        put: PutFigures,
        directory: Directory,
        member: str,
        kind: str,
        node_id: str,
        routes: Mapping[str, Route] | None = None,
    ) -> None:
        """Args:
        put: adds the metrics of the process.
        directory: that of the cluster.
        member: name of the process, by which Prometheus knows it after a restart, too.
        kind: what it is, such as worker.
        node_id: where it runs.
        routes: what is served besides.
        """
        self._put = put
        self._directory = directory
        self._member, self._kind, self._node_id = member, kind, node_id
        self._server = HttpServer({METRICS_PATH: Route("GET", self._answer, audience=metrics_audience()), **(routes or {})})
        self._announcer: Announcer | None = None

    async def start(self, host: str, port: int = 0) -> str:
        """Serves and announces itself; port 0 takes a free one. Returns the address, host:port.

        Raises:
            StartupError: the address cannot be bound.
        """
        address = await self._server.start(host, port)
        entry = EndpointEntry(self._member, self._kind, self._node_id, address)
        directory = self._directory
        self._announcer = Announcer(
            lambda: directory.announce_endpoint(entry),
            lambda: directory.withdraw_endpoint(entry),
            directory.renewal_interval_s,
        )
        await self._announcer.start()
        return address

    async def wait(self) -> None:
        """Runs until it fails, then raises its error."""
        assert self._announcer is not None, "the endpoint was not started"
        await self._announcer.wait()

    async def stop(self) -> None:
        if self._announcer is not None:
            await self._announcer.stop()
        await self._server.stop()

    async def _answer(self, headers: Mapping[str, str], body: bytes) -> HttpAnswer:
        figures = Figures()
        figures.put(names.BUILD_INFO, 1, __version__)
        await self._put(figures)
        if not figures.has(names.REDIS_REACHABLE):  # some know it at any moment, the others from renewing their entries
            figures.put(names.REDIS_REACHABLE, self._announcer is not None and self._announcer.reaches_redis)
        figures.put_process()
        return HttpAnswer(200, CONTENT_TYPE, figures.text())
