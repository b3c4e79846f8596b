"""A cluster without Ray for commands that start one: a recording gateway, and the configuration that was asked for."""

from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType, TracebackType
from typing import Any, ClassVar, Self

from pbkv_cluster.core.config import Config
from pbkv_cluster.core.errors import PbkvError
from tests.simulator.recording_gateway import RecordingGateway, serving_in_thread


class StandInCluster:
    """The part of `LocalCluster` that commands use."""

    started: ClassVar[list["StandInCluster"]]
    failures: ClassVar[dict[tuple[str, str], PbkvError]] = {}  # of every gateway
    running: ClassVar[int] = 0

    def __init__(
        self,
        config: Config,
        edges: Mapping[str, Any] | None = None,
        report: Callable[[str], None] | None = None,
        record: Any = None,
        dashboard: Any = None,
    ) -> None:
        self.config = config
        self.edges = dict(edges or {})
        self.addresses = dict.fromkeys(self.edges, "127.0.0.1:3")
        self.gateway = RecordingGateway()
        self.gateway.failures.update(self.failures)
        self.gateway_address = ""
        self.redis_url = "redis://:s3cret@127.0.0.1:1"
        self.redis_url_file = Path("/state/redis.url")
        self.http_address = ""
        self.discovery_url = "http://127.0.0.1:4/discovery"
        self.dashboard_url = "http://127.0.0.1:2/" if dashboard else ""
        self.ray_dashboard_url = ""
        self.waited = False
        self._context = serving_in_thread(self.gateway)

    @property
    def gateway_addresses(self) -> list[str]:
        return [self.gateway_address]

    def __enter__(self) -> Self:
        assert not StandInCluster.running, "clusters run one after the other"
        self.gateway_address = self._context.__enter__()
        self.started.append(self)
        StandInCluster.running += 1
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        StandInCluster.running -= 1
        self._context.__exit__(None, None, None)

    def wait(self) -> None:
        self.waited = True


def module() -> tuple[ModuleType, list[StandInCluster]]:
    """A module that replaces `pbkv_cluster.cluster.local`, and the list of clusters that it starts."""
    stand_in = ModuleType("pbkv_cluster.cluster.local")
    started: list[StandInCluster] = []
    stand_in.LocalCluster = type("LocalCluster", (StandInCluster,), {"started": started})  # type: ignore[attr-defined]
    return stand_in, started
