"""What surrounds vLLM in a worker's process: its variables, the settings for our plug-ins in it, its sockets."""

from collections.abc import MutableMapping
from pathlib import Path
from typing import Any

import yaml

from pbkv_cluster.core.config import Config
from pbkv_cluster.core.config.sources import ENV_CLIENT, ENV_FILE, ENV_PREFIX
from pbkv_cluster.core.errors import StartupError
from pbkv_cluster.integrations.engine_store.settings import REDIS_VARIABLE

_SETTINGS: Any = {"engine": {"type"}, "cache": True, "plugins": True, "predictor": True, "security": True, "vllm": True}
_KEPT = {*ENV_CLIENT, REDIS_VARIABLE}  # what plug-ins take where their own settings say nothing
_SOCKET_BYTES = 107  # of a path; Linux takes no longer ones


def set_environment(config: Config, host: str, folder: Path, environment: MutableMapping[str, str]) -> None:
    """Sets variables that vLLM and its processes read, except those that the user has set.

    What our plug-ins in vLLM read are the settings of the cluster, whatever their source was.

    Args:
        config: of the cluster.
        host: that the worker serves on.
        folder: of this process alone, for the file with the settings.
        environment: of this process.
    """
    variables = {
        "VLLM_HOST_IP": host,
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",  # or several workers would share the first cores
        "VLLM_LOGGING_LEVEL": config.logging.level.upper(),
    }
    if host.startswith("127."):
        variables["GLOO_SOCKET_IFNAME"] = "lo"
    for name, value in variables.items():
        environment.setdefault(name, value)
    environment["OMP_NUM_THREADS"] = str(config.engine.threads)
    # This process has threads, which do not survive a fork; and what is forked would survive this process (`parent_death`).
    environment["VLLM_WORKER_MULTIPROC_METHOD"] = "spawn"
    for name in [name for name in environment if name.startswith(ENV_PREFIX) and name not in _KEPT]:
        del environment[name]
    file = folder / "pbkv.yaml"
    file.write_text(yaml.safe_dump(config.model_dump(mode="json", include=_SETTINGS)))
    environment[ENV_FILE] = str(file)


def event_sockets(folder: Path) -> dict[str, str]:
    """Where vLLM publishes its KV events and sends them again, by the names that `kv_events_config` has for them.

    Args:
        folder: of this process alone.

    Raises:
        StartupError: a socket there would have too long a path.
    """
    paths = {"endpoint": folder / "e", "replay_endpoint": folder / "r"}
    longest = max(len(str(path).encode()) for path in paths.values())
    if longest > _SOCKET_BYTES:
        raise StartupError(f"TMPDIR: sockets in {folder} would have paths of {longest} bytes, and {_SOCKET_BYTES} are possible")
    return {name: f"ipc://{path}" for name, path in paths.items()}
