"""The gateway's ports, chosen before it starts, so that one that restarts keeps them."""

from pbkv_cluster.core.config import Config
from pbkv_cluster.store.cluster_index.redis_server import free_port


def with_free_ports(config: Config, host: str) -> Config:
    """The configuration with free ports in place of port 0.

    Raises:
        StartupError: nothing can listen on `host`.
    """
    zero = [name for name in ("port", "http_port") if getattr(config.gateway, name) == 0]
    return _with_gateway(config, {name: free_port(host) for name in zero})


def without_http(config: Config) -> Config:
    """The configuration without the HTTP API."""
    return _with_gateway(config, {"http_port": -1})


def _with_gateway(config: Config, ports: dict[str, int]) -> Config:
    return config.model_copy(update={"gateway": config.gateway.model_copy(update=ports)})
