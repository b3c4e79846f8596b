"""A local cluster in a process of its own, so that a benchmark's memory and work are not counted as the cluster's."""

import atexit
import multiprocessing
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from multiprocessing.connection import Connection

from pbkv_cluster.core.config import Config

_START_S, _STOP_S = 180.0, 60.0
_POLL_S = 0.1
CONFIG = Config.model_validate(
    {
        "cluster": {"name": "benchmark", "workers": 2},
        "engine": {"device": "cpu", "gpu_blocks": 1024, "host_blocks": 1024},
        "gateway": {"port": 0, "http_port": -1},
    }
)


@dataclass(frozen=True, slots=True)
class Running:
    """A running cluster."""

    pid: int  # of the process that started all the others
    gateway: str
    redis_url: str
    pipe: Connection  # to that process
    dashboard: str = ""  # its URL; empty: there is none

    def pids(self) -> dict[str, int]:
        """Process ids of the members by name, and of the `standby`, when all of them are ready."""
        self.pipe.send(None)
        found: dict[str, int] = self.pipe.recv()
        return found


@cache
def running() -> Running:
    """The cluster that benchmarks share. The first call starts it; it ends with this process.

    Raises:
        RuntimeError: the cluster cannot start; the message says why.
    """
    stack = ExitStack()
    atexit.register(stack.close)
    return stack.enter_context(started(CONFIG))


@contextmanager
def started(config: Config, with_dashboard: bool = False) -> Iterator[Running]:
    """A cluster with a configuration of its own, and perhaps with pages for operators.

    Raises:
        RuntimeError: it cannot start; the message says why.
    """
    spawn = multiprocessing.get_context("spawn")
    ours, theirs = spawn.Pipe()
    process = spawn.Process(target=_serve, args=(config, theirs, with_dashboard), name="cluster")
    process.start()
    try:
        if not ours.poll(_START_S):
            raise RuntimeError("the cluster did not start in time")
        found = ours.recv()
        if isinstance(found, str):
            raise RuntimeError(f"the cluster cannot start: {found}")
        gateway, redis_url, dashboard = found
        yield Running(process.pid or 0, gateway, redis_url, ours, dashboard)
    finally:
        ours.close()
        process.join(_STOP_S)
        if process.is_alive():
            process.kill()


def _serve(config: Config, pipe: Connection, with_dashboard: bool) -> None:
    from pbkv_cluster.cluster.local import LocalCluster
    from pbkv_cluster.core.errors import PbkvError
    from pbkv_cluster.dashboard.member import Dashboard

    try:
        with (
            LocalCluster(config, dashboard=Dashboard if with_dashboard else None) as cluster,
            suppress(EOFError),
        ):  # until the other side closes
            pipe.send((cluster.gateway_address, cluster.redis_url, cluster.dashboard_url))
            while True:
                pipe.recv()
                while not (members := cluster.pids()) or not (standby := cluster.standby_pid):
                    time.sleep(_POLL_S)
                pipe.send(members | {"standby": standby})
    except PbkvError as error:
        pipe.send(str(error))
