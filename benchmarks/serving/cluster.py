"""A local cluster in a process of its own, so that a benchmark's memory and work are not counted as the cluster's."""

import atexit
import multiprocessing
from dataclasses import dataclass
from functools import cache
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess

from pbkv_cluster.core.config import Config

_START_S, _STOP_S = 180.0, 60.0
CONFIG = Config.model_validate(
    {
        "cluster": {"name": "benchmark", "workers": 2},
        "engine": {"device": "cpu", "gpu_blocks": 1024, "host_blocks": 1024},
        "gateway": {"port": 0},
    }
)


@dataclass(frozen=True, slots=True)
class Running:
    """A running cluster."""

    pid: int  # of the process that started all the others
    gateway: str
    redis_url: str
    members: dict[str, int]  # process ids by name


@cache
def running() -> Running:
    """The cluster that benchmarks share. The first call starts it; it ends with this process.

    Raises:
        RuntimeError: the cluster cannot start; the message says why.
    """
    spawn = multiprocessing.get_context("spawn")
    ours, theirs = spawn.Pipe()
    process = spawn.Process(target=_serve, args=(CONFIG, theirs), name="cluster")
    process.start()
    atexit.register(_stop, process, ours)
    if not ours.poll(_START_S):
        raise RuntimeError("the cluster did not start in time")
    found = ours.recv()
    if isinstance(found, str):
        raise RuntimeError(f"the cluster cannot start: {found}")
    assert isinstance(found, Running)
    return found


def _stop(process: BaseProcess, pipe: Connection) -> None:
    pipe.close()
    process.join(_STOP_S)
    if process.is_alive():
        process.kill()


def _serve(config: Config, pipe: Connection) -> None:
    from pbkv_cluster.cluster.local import LocalCluster
    from pbkv_cluster.core.errors import PbkvError

    try:
        with LocalCluster(config) as cluster:
            pids = cluster.pids()
            pipe.send(Running(multiprocessing.current_process().pid or 0, cluster.gateway_address, cluster.redis_url, pids))
            pipe.poll(None)  # returns when the other side closes
    except PbkvError as error:
        pipe.send(str(error))
