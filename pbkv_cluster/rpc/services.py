"""How a process finds the services of its cluster: by name, as `host:port`."""

from collections.abc import Mapping
from typing import Protocol

PREDICTOR = "predictor"
GATEWAY = "gateway"  # name of the first gateway; further ones are gateway-1 and so on
HEAD = "head"  # the process that runs the cluster; it speaks HTTP
DASHBOARD = "dashboard"  # the pages for operators; HTTP, too
DISCOVERY_PATH = "/discovery"  # where it tells Prometheus of all members
HOST_STORE = "host_store"  # the one on this process's node


def gateway_name(number: int) -> str:
    """The name of a gateway, counted from 0."""
    return f"{GATEWAY}-{number}" if number else GATEWAY


def is_gateway(member: str) -> bool:
    """Whether a member of that name is a gateway."""
    return member == GATEWAY or member.startswith(f"{GATEWAY}-")


class Services(Protocol):
    """Looks up addresses. The cluster's directory is one; `FixedServices` is another."""

    async def service_address(self, name: str) -> str | None:
        """The present address of a service, host:port; None if no such service is announced.

        Raises:
            Unavailable: the directory does not answer.
        """
        ...


class FixedServices:
    """Addresses given once, such as one that a user has typed."""

    def __init__(self, addresses: Mapping[str, str]) -> None:
        """`addresses` maps the name of a service to its host:port."""
        self._addresses = dict(addresses)

    async def service_address(self, name: str) -> str | None:
        return self._addresses.get(name)
