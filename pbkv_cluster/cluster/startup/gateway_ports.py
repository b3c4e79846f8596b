"""The gateways' ports, chosen before they start, so that one that restarts keeps them.

Gateways on different nodes have the same ports. Further ones on one node have the next ports: two cannot share one.
"""

from pbkv_cluster.core.config import Config
from pbkv_cluster.store.cluster_index.redis_server import free_port

_PORTS = ("port", "http_port")


def with_free_ports(config: Config, host: str) -> Config:
    """The configuration with free ports in place of port 0.

    Raises:
        StartupError: nothing can listen on `host`.
    """
    zero = [name for name in _PORTS if getattr(config.gateway, name) == 0]
    return _with_gateway(config, {name: free_port(host) for name in zero})


def with_next_ports(config: Config, position: int) -> Config:
    """The configuration of a further gateway on a node; port 0 stays 0.

    Args:
        config: as it was given.
        position: of the gateway on its node, from 0.
    """
    given = {name: getattr(config.gateway, name) for name in _PORTS}
    return _with_gateway(config, {name: port + position for name, port in given.items() if port > 0})


def without_http(config: Config) -> Config:
    """The configuration without the HTTP API."""
    return _with_gateway(config, {"http_port": -1})


def _with_gateway(config: Config, ports: dict[str, int]) -> Config:
    return config.model_copy(update={"gateway": config.gateway.model_copy(update=ports)})
