"""This process's connection to Ray: on a Ray cluster that is started here, or on one that it joins.

Ray is imported inside the functions: most of the environment that it reads must be set before.
"""

import logging
import math
import os
from pathlib import Path
from typing import Any, cast

from pbkv_cluster.cluster.frame import ray_nodes
from pbkv_cluster.cluster.frame.lean_ray import lean_start
from pbkv_cluster.cluster.startup.private_file import make_private
from pbkv_cluster.core.config import Config
from pbkv_cluster.core.errors import StartupError, Unavailable

_OBJECT_STORE_BYTES = 80 << 20  # Ray's minimum: none of our data goes through it
_CHILD_ENVIRONMENT = {
    "MALLOC_ARENA_MAX": "2",  # by default the C library keeps a heap for each of a process's many threads
    "OMP_NUM_THREADS": "1",  # two torch threads beside a busy core are many times slower
    "TOKENIZERS_PARALLELISM": "false",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
}
_OWN_RAY_ENVIRONMENT = {
    # Ray would kill members, all of them if need be, when any other process fills the machine's memory. Ours is reserved when
    # they start, so killing them frees what nobody lacks; the kernel's own killer remains.
    "RAY_memory_monitor_refresh_ms": "0",
    # By default Ray has its workers yield to everything else (niceness 15): beside other busy processes, members would starve.
    "RAY_worker_niceness": "0",
}


def set_environment(config: Config) -> None:
    """Sets variables that every process of the cluster inherits, except those that the user has set."""
    variables = dict(_CHILD_ENVIRONMENT)
    if not config.cluster.address:
        # Ray gives its first process half a minute, which beside many busy ones may not be enough.
        wait_s = str(math.ceil(config.cluster.start_timeout_s))
        variables |= _OWN_RAY_ENVIRONMENT | {"RAY_gcs_server_port_wait_time_s": wait_s}
    for name, value in variables.items():
        os.environ.setdefault(name, value)


def start(config: Config) -> str:
    """Starts Ray, or joins the Ray cluster at `cluster.address`. Returns the URL of Ray's dashboard, empty if it has none.

    Raises:
        StartupError: Ray cannot be started or joined, or this process uses it already.
    """
    cluster = config.cluster
    token = Path.home() / ".ray" / "auth_token"
    make_private(token)
    if cluster.address and token.exists():
        # `ray start` requires the user's token wherever there is one; a driver that joins has to opt in to presenting it.
        os.environ.setdefault("RAY_AUTH_MODE", "token")
    import ray
    from ray import _raylet

    if ray.is_initialized():
        raise StartupError("this process is connected to a Ray cluster already")
    # Ray reads the environment once, when it is imported: maybe long ago, by the caller.
    cast(Any, _raylet).Config.initialize("")
    quiet: dict[str, Any] = {
        "log_to_driver": False,
        "logging_level": logging.ERROR,
        "namespace": f"pbkv-{cluster.name}",
    }
    try:
        if cluster.address:
            context = ray.init(address=cluster.address, **quiet)
        else:
            with lean_start():
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
    make_private(token)  # Ray may have written it, for everybody to read
    return context.dashboard_url or ""


def stop() -> None:
    """Disconnects from Ray; a Ray cluster that was started here ends."""
    import ray

    ray.shutdown()


def check_alive() -> None:
    """Raises:
    Unavailable: the Ray cluster does not answer, or has lost this node.
    """
    try:
        alive = ray_nodes.this_node_id() in {node.node_id for node in ray_nodes.living()}
    except Exception as error:  # of Ray, of several kinds
        raise Unavailable(f"the Ray cluster is lost: {error}") from error
    if not alive:
        raise Unavailable("the Ray cluster has lost this node: its raylet has died")
