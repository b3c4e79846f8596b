"""Whether others than the users of this machine can call a cluster without an API key."""

import ipaddress
from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pbkv_cluster.core.config import Config


def open_to_all(config: "Config", host: str) -> str:
    """A warning in one line; empty: there is nothing to warn of.

    Args:
        config: of the cluster.
        host: address that the members of this node bind.
    """
    if config.security.credentials:
        return ""
    reachable = sorted({each for each in _hosts(config, host) if not is_loopback(each)})
    if not reachable:
        return ""
    return (
        f"warning: everybody who can reach {' or '.join(reachable)} can use this cluster, because security.credentials is "
        "empty; see docs/deploy.md, Security"
    )


def _hosts(config: "Config", host: str) -> Iterator[str]:
    yield host
    if config.metrics.enabled and config.dashboard.enabled:
        yield config.dashboard.host


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches an address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
