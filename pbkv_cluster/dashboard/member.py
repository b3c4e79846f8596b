"""The dashboard as a part of the process that runs the cluster, so that it outlives every member that it shows."""

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

from pbkv_cluster.cluster.membership.announcer import Announcer
from pbkv_cluster.cluster.membership.member import MemberContext
from pbkv_cluster.cluster.membership.redis_connection import RedisConnection
from pbkv_cluster.core.background import Background, first_failure_of
from pbkv_cluster.core.clock import SystemClock
from pbkv_cluster.core.errors import StartupError
from pbkv_cluster.core.locations.installation import install_command

if TYPE_CHECKING:
    from pbkv_cluster.dashboard.history_file import HistoryFile
    from pbkv_cluster.dashboard.server import DashboardServer

_SERVER = "pbkv_cluster.dashboard.server"


def missing_packages() -> str:
    """What to do to get the dashboard, in one line; empty: everything is there."""
    try:
        import_module(_SERVER)
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("pbkv_cluster"):
            raise
        return f"it needs more packages: {install_command('dashboard')} ({error})"
    return ""


class Dashboard:
    """Collects and serves on the event loop that it is started on."""

    def __init__(self, context: MemberContext) -> None:
        """`context`: as that of a member; its configuration has host, port and the file for history."""
        self._context = context
        self._redis = RedisConnection(context)
        self._background = Background()
        self._server: DashboardServer | None = None
        self._announcer: Announcer | None = None
        self._file: HistoryFile | None = None

    def prepare(self) -> None:
        import_module(_SERVER)

    async def start(self) -> str:
        """Raises:
        StartupError: a package is missing, the port cannot be bound, or the file for history cannot be used.
        """
        if missing := missing_packages():
            raise StartupError(f"the dashboard cannot start: {missing}")
        from pbkv_cluster.dashboard.collector import Collector
        from pbkv_cluster.dashboard.history import ROW_BYTES, History
        from pbkv_cluster.dashboard.history_file import HistoryFile
        from pbkv_cluster.dashboard.server import DashboardServer
        from pbkv_cluster.dashboard.viewers import Viewers
        from pbkv_cluster.rpc.services import DASHBOARD

        config, directory, clock = self._context.config.dashboard, self._redis.directory, SystemClock()
        viewers, history = Viewers(), History(config.history_bytes)
        collector = Collector(self._context.config.cluster.name, directory, clock, viewers, history)
        if config.history_path:
            self._file = HistoryFile(Path(config.history_path), config.history_bytes // ROW_BYTES)
            collector.continue_from(self._file)
        self._server = DashboardServer(collector, viewers, history, clock)
        address = await self._server.start(config.host, config.port)
        self._background.start(collector.run(), "dashboard collector")
        self._announcer = Announcer.of_service(directory, DASHBOARD, address)
        await self._announcer.start()
        return address

    async def wait(self) -> None:
        """Runs until a part fails, then raises its error."""
        assert self._server is not None, "the dashboard was not started"
        assert self._announcer is not None, "the dashboard was not started"
        await first_failure_of(self._server.wait, self._announcer.wait, self._background.failure)

    async def stop(self) -> None:
        if self._announcer is not None:
            await self._announcer.stop()
        if self._server is not None:
            await self._server.stop()
        await self._background.stop()
        if self._file is not None:
            self._file.close()
        await self._redis.close()
