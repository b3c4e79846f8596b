"""The ports that a configuration names on this node, and whether they can be had."""

import errno
import os
import socket
from collections.abc import Iterator
from typing import NamedTuple

from pbkv_cluster.core.config import Config
from pbkv_cluster.core.locations.addresses import join_address
from pbkv_cluster.rpc.services import gateway_name

_LOOPBACK = "127.0.0.1"


class Port(NamedTuple):
    """A port that a start binds."""

    field: str
    host: str  # empty: only Ray tells it, once a cluster has been joined
    number: int  # 0: any free one


def ports(config: Config) -> Iterator[Port]:
    """The configured ports. A node that joins a cluster is told the address to bind by Ray, if not by the configuration."""
    host = config.cluster.host or ("" if config.cluster.address else _LOOPBACK)
    gateway = config.gateway
    # In a cluster that is joined, only Ray tells how many of them are on this node.
    here = max(1, gateway.replicas) if not config.cluster.address else 1
    for position in range(here):
        of = f" (of {gateway_name(position)})" if position else ""
        yield Port(f"gateway.port{of}", host, gateway.port and gateway.port + position)
        if gateway.http_port >= 0:
            yield Port(f"gateway.http_port{of}", host, gateway.http_port and gateway.http_port + position)
    if config.metrics.enabled:
        yield Port("metrics.port", host, config.metrics.port)
    if config.otel.enabled:
        yield Port("otel.port", host, config.otel.port)
        if config.otel.http_port >= 0:
            yield Port("otel.http_port", host, config.otel.http_port)
    if config.metrics.enabled and config.dashboard.enabled and config.dashboard.port:
        yield Port("dashboard.port", config.dashboard.host, config.dashboard.port)


def port_problems(config: Config) -> Iterator[tuple[Port, str]]:
    """What keeps ports from being bound, with the setting's name, in the order of `ports`."""
    taken: dict[int, str] = {}
    for port in ports(config):
        if port.number and (other := taken.setdefault(port.number, port.field)) != port.field:
            yield port, f"{port.field}: {port.number} is the port of {other} too"
        elif port.host and (problem := _problem(port)):
            yield port, problem


def reason(error: OSError) -> str:
    """The reason alone; `socket.create_server` puts the address into its text."""
    if error.errno == errno.EADDRINUSE:
        return "the port is in use"
    return os.strerror(error.errno) if error.errno and error.errno > 0 else str(error.strerror or error)


def _problem(port: Port) -> str:
    try:
        family, _, _, _, address = socket.getaddrinfo(port.host, port.number, type=socket.SOCK_STREAM)[0]
        socket.create_server(address[:2], family=family).close()
    except OSError as error:
        if error.errno in (errno.EADDRINUSE, errno.EACCES):
            return f"{port.field}: cannot listen on {join_address(port.host, port.number)}: {reason(error)}"
        setting = "dashboard.host" if port.field == "dashboard.port" else "cluster.host"
        return f"{setting}: nothing can listen on {port.host} here: {reason(error)}"
    return ""
