"""A cluster that lives as long as the process that started it: on Ray started here, or on a Ray cluster that it joins."""

import asyncio
import functools
import logging
import os
import shutil
import signal
import socket
import tempfile
import threading
import time
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any, Self

from pbkv_cluster.cache.policies.base import make_policy
from pbkv_cluster.cluster.member_context import MakeMember, MemberContext
from pbkv_cluster.cluster.members import GatewayMember, HostStoreMember, PredictorMember, WorkerMember
from pbkv_cluster.core.config import Config
from pbkv_cluster.core.errors import StartupError, Unavailable
from pbkv_cluster.predictor_service.predictor import PREDICTORS
from pbkv_cluster.store.cluster_index import Directory, RedisServer, ServiceEntry, connect

log = logging.getLogger(__name__)

_LOOPBACK = "127.0.0.1"
_OBJECT_STORE_BYTES = 80 << 20  # Ray's least: nothing of ours goes through it
_STOP_S = 20.0
_HEALTH_S = 2.0


class LocalCluster:
    """Starts Redis, Ray and every member; leaving the context ends all that it started."""

    def __init__(self, config: Config, edges: Mapping[str, MakeMember] | None = None) -> None:
        """Args:
        config: of the cluster.
        edges: further members by name, which this layer does not know; they run on this node.
        """
        self._config = config
        self._edges = dict(edges or {})
        self._stack = ExitStack()
        self._actors: dict[str, Any] = {}
        self._interrupted = threading.Event()
        self.name = config.cluster.name
        self.gateway_address = ""
        self.addresses: dict[str, str] = {}  # of all members, by name
        self.redis_url = ""
        self.dashboard_url = ""  # of Ray, where it has one

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
            Unavailable: Ray is lost.
        """
        import ray

        try:
            while not self._interrupted.wait(_HEALTH_S):
                try:
                    ray.nodes()
                except ray.exceptions.RayError as error:
                    raise Unavailable(f"the Ray cluster is lost: {error}") from error
        except KeyboardInterrupt:
            log.info("interrupted")

    def pids(self) -> dict[str, int]:
        """Process ids of the members by name: gateway, predictor, host-store-0, worker-0 and so on."""
        import ray

        return {name: ray.get(actor.pid.remote()) for name, actor in self._actors.items()}

    def stop(self) -> None:
        """Ends everything in the reverse order of its start. Harmless when repeated."""
        self._stack.close()

    def _start(self) -> None:
        _check_names(self._config)
        self._catch_sigterm()
        _quiet_children()
        state_dir = _state_dir()
        self._stack.callback(shutil.rmtree, state_dir, ignore_errors=True)
        cluster = self._config.cluster
        joined = bool(cluster.address)
        # Ray first: where it is joined, it tells under which address this node is known to the others.
        nodes = self._start_ray()
        self._catch_sigterm()  # again: Ray has put its own handler in the place of ours
        host = cluster.host or ("" if joined else _LOOPBACK)
        redis = RedisServer.resolve(self._config.redis.url, host=host or _own_address())
        self._stack.callback(redis.stop)
        self.redis_url = redis.url
        self._stack.callback(self._stop_actors)
        self._config = _with_port(self._config, host or _own_address())
        site = MemberContext(self._config, redis.url, host, "", state_dir)
        self._check_alone()
        self._launch(site, nodes)

    def _start_ray(self) -> list[str]:
        """Returns the ids of the nodes."""
        cluster = self._config.cluster
        if cluster.address and (Path.home() / ".ray" / "auth_token").exists():
            # `ray start` asks for the user's token wherever there is one; who joins has to say that it will be shown.
            os.environ.setdefault("RAY_AUTH_MODE", "token")
        import ray

        if ray.is_initialized():
            raise StartupError("this process is connected to a Ray cluster already")
        quiet: dict[str, Any] = {
            "log_to_driver": False,
            "logging_level": logging.ERROR,
            "namespace": f"pbkv-{cluster.name}",
        }
        try:
            if cluster.address:
                context = ray.init(address=cluster.address, **quiet)
            else:
                context = ray.init(
                    address="local",
                    _node_ip_address=cluster.ray_node_ip,
                    include_dashboard=False,
                    object_store_memory=_OBJECT_STORE_BYTES,
                    **quiet,
                )
        except (ConnectionError, ValueError, RuntimeError, OSError) as error:
            hint = " (a Ray cluster with a token wants RAY_AUTH_MODE=token and RAY_AUTH_TOKEN)" if cluster.address else ""
            raise StartupError(f"cluster.address: Ray cannot be started or joined: {error}{hint}") from error
        self._stack.callback(ray.shutdown)
        self.dashboard_url = context.dashboard_url or ""
        return [node["NodeID"] for node in ray.nodes() if node["Alive"]]

    def _launch(self, site: MemberContext, nodes: list[str]) -> None:
        import ray

        from pbkv_cluster.cluster.actors import launch

        gpus = _gpus_of_a_worker(self._config)
        # What is reached under one address for as long as the cluster runs, or keeps its state in a file, stays on this node.
        here = ray.get_runtime_context().get_node_id()
        self._actors[_PREDICTOR] = launch(_PREDICTOR, PredictorMember, site, node_id=here)
        for number, node in enumerate(nodes):
            name = f"host-store-{number}"
            self._actors[name] = launch(name, HostStoreMember, site, node_id=node)
        for number in range(self._config.cluster.workers):
            name = f"worker-{number}"
            self._actors[name] = launch(name, functools.partial(WorkerMember, worker_id=name), site, gpus=gpus)
        for name, make in self._edges.items():
            self._actors[name] = launch(name, make, site, node_id=here)
        self._actors[_GATEWAY] = launch(_GATEWAY, GatewayMember, site, node_id=here)
        self.addresses = self._await_ready()
        self.gateway_address = self.addresses[_GATEWAY]

    def _check_alone(self) -> None:
        """Two clusters of one name in one Redis would take each other's workers for their own.

        Raises:
            StartupError: there is one already, or there was until a moment ago.
        """
        name, lease_s = self._config.cluster.name, self._config.redis.lease_s

        async def gateway() -> ServiceEntry | None:
            redis = connect(self.redis_url)
            try:
                return await Directory(redis, name, lease_s).service(_GATEWAY)
            finally:
                await redis.aclose()

        found = asyncio.run(gateway())
        if found is not None:
            raise StartupError(
                f"cluster.name: a cluster {name!r} with its gateway at {found.address} uses this Redis; choose another name "
                f"(if it was killed, its name is free again after redis.lease_s, {lease_s:g} s)"
            )

    def _await_ready(self) -> dict[str, str]:
        import ray

        timeout_s = self._config.cluster.start_timeout_s
        pending = {actor.ready.remote(timeout_s): name for name, actor in self._actors.items()}
        deadline = time.monotonic() + timeout_s
        addresses: dict[str, str] = {}
        while pending:
            done, _ = ray.wait(list(pending), timeout=max(0.0, deadline - time.monotonic()))
            if not done:
                late = ", ".join(sorted(pending.values()))
                raise StartupError(f"not ready after {timeout_s:.0f} s (cluster.start_timeout_s): {late}")
            name = pending.pop(done[0])
            try:
                addresses[name], problem = ray.get(done[0])
            except ray.exceptions.RayError as error:
                raise StartupError(f"{name} died while it started: {error}") from error
            if problem:
                raise StartupError(f"{name} cannot start: {problem}")
        return addresses

    def _stop_actors(self) -> None:
        import ray

        if not ray.is_initialized():
            return
        # The gateway goes first, so that clients hear of it from the front door.
        for names in ((_GATEWAY,), [name for name in self._actors if name != _GATEWAY]):
            stopping = [self._actors[name].stop.remote() for name in names if name in self._actors]
            if stopping:
                ray.wait(stopping, num_returns=len(stopping), timeout=_STOP_S)
        for actor in self._actors.values():
            ray.kill(actor, no_restart=True)
        self._actors.clear()

    def _catch_sigterm(self) -> None:
        if threading.current_thread() is not threading.main_thread():
            return  # whoever runs the main thread decides

        def interrupt(number: int, frame: FrameType | None) -> None:
            self._interrupted.set()
            raise KeyboardInterrupt

        before = signal.signal(signal.SIGTERM, interrupt)
        self._stack.callback(signal.signal, signal.SIGTERM, before)


_STATE_PREFIX = "pbkv-state-"
_PREDICTOR, _GATEWAY = "predictor", "gateway"


def _check_names(config: Config) -> None:
    """Finds what is misspelt before anything is started.

    Raises:
        InvalidArgument: there is no policy or predictor of the configured name.
    """
    for field, name in (("cache.policy", config.cache.policy), ("cache.host_policy", config.cache.host_policy)):
        make_policy(name, config.cache, field)
    PREDICTORS.get(config.predictor.model)


def _quiet_children() -> None:
    """Settings that every process of the cluster inherits, unless the user has set them."""
    for name, value in {
        "OMP_NUM_THREADS": "1",  # two torch threads beside a busy core are many times slower
        "TOKENIZERS_PARALLELISM": "false",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    }.items():
        os.environ.setdefault(name, value)


def _state_dir() -> str:
    """A new directory for what has to survive the restart of a member; those of processes that were killed are removed."""
    home = Path(tempfile.gettempdir())
    for path in home.glob(f"{_STATE_PREFIX}*"):
        pid = path.name.removeprefix(_STATE_PREFIX).split("-")[0]
        if pid.isdigit() and not Path(f"/proc/{pid}").exists():
            shutil.rmtree(path, ignore_errors=True)
    return tempfile.mkdtemp(prefix=f"{_STATE_PREFIX}{os.getpid()}-")


def _with_port(config: Config, host: str) -> Config:
    """Port 0 is drawn once and for all, so that a gateway that restarts is found where it was."""
    if config.gateway.port:
        return config
    with socket.socket() as probe:
        probe.bind((host, 0))
        port = probe.getsockname()[1]
    return config.model_copy(update={"gateway": config.gateway.model_copy(update={"port": port})})


def _own_address() -> str:
    import ray

    return str(ray.util.get_node_ip_address())


def _gpus_of_a_worker(config: Config) -> float:
    """What a worker asks of Ray: one GPU where the cluster has any and the configuration does not name another device.

    Raises:
        StartupError: there are too few.
    """
    import ray

    device, workers = config.engine.device, config.cluster.workers
    if device not in ("auto", "cuda"):
        return 0
    gpus = int(ray.cluster_resources().get("GPU", 0))
    if gpus == 0 and device == "auto":
        return 0
    if gpus < workers:
        raise StartupError(f"cluster.workers: {workers} workers need a GPU each, there are {gpus} (engine.device: {device})")
    return 1
