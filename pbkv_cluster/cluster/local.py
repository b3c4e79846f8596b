"""A cluster that lives as long as the process that starts it: on Ray started here, or on a Ray cluster that it joins."""

import functools
import logging
import os
import shutil
import signal
import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from types import FrameType, TracebackType
from typing import TYPE_CHECKING, Self

from pbkv_cluster.cluster import preflight, ray_session
from pbkv_cluster.cluster.acquaintance import await_acquaintance
from pbkv_cluster.cluster.member import MakeMember, MemberContext
from pbkv_cluster.cluster.members import GatewayMember, HostStoreMember, PredictorMember, WorkerMember
from pbkv_cluster.cluster.private_file import write_private
from pbkv_cluster.cluster.problem_watch import ProblemWatch
from pbkv_cluster.cluster.stages import Stages
from pbkv_cluster.core.config import Config
from pbkv_cluster.predictor_service.predictor import PREDICTORS
from pbkv_cluster.rpc.services import GATEWAY, PREDICTOR
from pbkv_cluster.store.cluster_index import RedisServer
from pbkv_cluster.store.cluster_index.redis_server import free_port

if TYPE_CHECKING:
    from pbkv_cluster.cluster.actor_group import ActorGroup

log = logging.getLogger(__name__)

_LOOPBACK = "127.0.0.1"
_HEALTH_S = 2.0
_STATE_PREFIX = "pbkv-state-"


class LocalCluster:
    """Starts Redis, Ray and all members; leaving the context stops everything that it started."""

    def __init__(
        self,
        config: Config,
        edges: Mapping[str, MakeMember] | None = None,
        report: Callable[[str], None] = log.info,
    ) -> None:
        """Args:
        config: of the cluster.
        edges: more members by name, from packages above this one; they run on this node.
        report: takes a line for each stage of the start.
        """
        self._report = report
        self._config = config
        self._edges = dict(edges or {})
        self._stack = ExitStack()
        self._actors: ActorGroup | None = None
        self._interrupted = threading.Event()
        self.name = config.cluster.name
        self.gateway_address = ""
        self.addresses: dict[str, str] = {}  # of all members, by name
        self.redis_url = ""  # with the password: not for logs
        self.redis_url_file: Path | None = None  # holds the URL, for its owner's eyes; None: Redis was not started here
        self.dashboard_url = ""  # Ray's dashboard; empty: none

    def __enter__(self) -> Self:
        """Raises:
        InvalidArgument: the configuration names an unknown policy or predictor.
        StartupError: something cannot start; says what and why, and nothing is left running.
        """
        try:
            self._start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.stop()

    def wait(self) -> None:
        """Returns at SIGINT or SIGTERM.

        Raises:
            Unavailable: the Ray cluster is lost.
        """
        try:
            problems = ProblemWatch(self.redis_url, self.name, self._config.redis.lease_s, self._report)
            while not self._interrupted.wait(_HEALTH_S):
                ray_session.check_alive()
                problems.poll()
        except KeyboardInterrupt:
            log.info("interrupted")

    def pids(self, timeout_s: float = 60.0) -> dict[str, int]:
        """Process ids of the members by name: gateway, predictor, host-store-0, worker-0 and so on.

        Raises:
            Unavailable: a member that is being restarted is not back within `timeout_s` seconds.
        """
        return {} if self._actors is None else self._actors.pids(timeout_s)

    def stop(self) -> None:
        """Stops everything in the reverse order of its start. May be called again."""
        self._stack.close()

    def _start(self) -> None:
        stages = Stages(self._report)
        preflight.check(self._config)
        _check_names(self._config)
        stages.done("settings, ports, model and Redis checked")
        self._catch_sigterm()
        ray_session.set_environment()
        state_dir = _make_state_dir()
        self._stack.callback(shutil.rmtree, state_dir, ignore_errors=True)
        # Ray first: in a Ray cluster that is joined, it tells under which address the other nodes reach this one.
        self.dashboard_url = ray_session.start(self._config)
        self._stack.callback(ray_session.stop)
        stages.done("Ray joined" if self._config.cluster.address else "Ray started")
        self._catch_sigterm()  # again: Ray has replaced our handler by its own
        joined = bool(self._config.cluster.address)
        host = self._config.cluster.host or ("" if joined else _LOOPBACK)
        here = host or ray_session.this_node_address()
        redis = RedisServer.resolve(self._config.redis.url, host=here)
        self._stack.callback(redis.stop)
        self.redis_url = redis.url
        if not self._config.redis.url:
            self.redis_url_file = write_private(Path(state_dir, "redis.url"), redis.url)
        self._config = _with_gateway_port(self._config, here)
        preflight.check_name_is_free(self._config)  # again: starting Ray takes seconds
        stages.done("Redis found" if self._config.redis.url else "Redis started")
        self._launch(MemberContext(self._config, redis.url, host, "", state_dir), stages)

    def _launch(self, context: MemberContext, stages: Stages) -> None:
        from pbkv_cluster.cluster.actor_group import ActorGroup

        actors = self._actors = ActorGroup()
        self._stack.callback(actors.stop, first=GATEWAY)  # so that clients learn of the end from the gateway
        gpus = ray_session.gpus_per_worker(self._config)
        # Members that keep their address as long as the cluster runs, or their state in a file, stay on this node.
        this_node = ray_session.this_node_id()
        actors.launch(PREDICTOR, PredictorMember, context, node_id=this_node)
        for number, node in enumerate(ray_session.node_ids()):
            actors.launch(f"host-store-{number}", HostStoreMember, context, node_id=node)
        for number in range(self._config.cluster.workers):
            name = f"worker-{number}"
            actors.launch(name, functools.partial(WorkerMember, worker_id=name), context, gpus=gpus)
        for name, make in self._edges.items():
            actors.launch(name, make, context, node_id=this_node)
        actors.launch(GATEWAY, GatewayMember, context, node_id=this_node)
        deadline = time.monotonic() + self._config.cluster.start_timeout_s
        self.addresses = actors.await_ready(self._config.cluster.start_timeout_s, lambda name: stages.done(f"{name} ready"))
        self.gateway_address = self.addresses[GATEWAY]
        await_acquaintance(self.gateway_address, self._config.cluster.workers, deadline - time.monotonic())

    def _catch_sigterm(self) -> None:
        if threading.current_thread() is not threading.main_thread():
            return  # only the main thread may set handlers, and its owner decides about signals

        def interrupt(number: int, frame: FrameType | None) -> None:
            self._interrupted.set()
            raise KeyboardInterrupt

        before = signal.signal(signal.SIGTERM, interrupt)
        self._stack.callback(signal.signal, signal.SIGTERM, before)


def _check_names(config: Config) -> None:
    """Finds unknown names before anything is started.

    Raises:
        InvalidArgument: there is no policy or predictor of the configured name.
    """
    from pbkv_cluster.cache.policies.base import make_policy  # slow to import

    for field, name in (("cache.policy", config.cache.policy), ("cache.host_policy", config.cache.host_policy)):
        make_policy(name, config.cache, field)
    PREDICTORS.get(config.predictor.model)


def _make_state_dir() -> str:
    """Makes a folder for state that survives the restart of a member. Removes those of processes that have died."""
    temporary = Path(tempfile.gettempdir())
    for path in temporary.glob(f"{_STATE_PREFIX}*"):
        pid = path.name.removeprefix(_STATE_PREFIX).split("-")[0]
        if pid.isdigit() and not Path(f"/proc/{pid}").exists():
            shutil.rmtree(path, ignore_errors=True)
    return tempfile.mkdtemp(prefix=f"{_STATE_PREFIX}{os.getpid()}-")


def _with_gateway_port(config: Config, host: str) -> Config:
    """The configuration with a free port in place of port 0, so that a gateway that restarts keeps its port.

    Raises:
        StartupError: nothing can listen on `host`.
    """
    if config.gateway.port:
        return config
    return config.model_copy(update={"gateway": config.gateway.model_copy(update={"port": free_port(host)})})
