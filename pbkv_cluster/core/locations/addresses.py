"""Addresses of services as text: host:port, with brackets around an IPv6 host, as in [::1]:26100."""

import ipaddress
from typing import NamedTuple

from pbkv_cluster.core.errors import InvalidArgument

MAX_PORT = 65_535
ADDRESS_VARIABLE = "PBKV_ADDRESS"  # of the environment: the gateways that a client calls, where a program names none


class Address(NamedTuple):
    """Where a service listens."""

    host: str  # without brackets
    port: int

    def __str__(self) -> str:
        return join_address(self.host, self.port)


def join_address(host: str, port: int) -> str:
    """`host` and `port` as one text.

    >>> join_address("::1", 26100)
    '[::1]:26100'
    """
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def parse_address(field: str, text: str) -> Address:
    """The parts of an address to connect to.

    Args:
        field: name of the value, for the error.
        text: host:port; an IPv6 host is in brackets.

    Raises:
        InvalidArgument: `text` is something else, or the port is out of range.
    """
    if "://" in text:
        raise InvalidArgument(field, f"must be HOST:PORT without a scheme, got {text!r}")
    host, colon, port = text.rpartition(":")
    if not colon or not host:
        raise InvalidArgument(field, f"must be HOST:PORT, got {text!r}")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
        if not _is_ipv6(host):
            raise InvalidArgument(field, f"{host!r} in brackets is no IPv6 address, in {text!r}")
    elif ":" in host:
        raise InvalidArgument(field, f"an IPv6 host must be in brackets, as in [::1]:26100, got {text!r}")
    check_host(field, host)
    if not (port.isascii() and port.isdigit() and len(port) <= 5 and 1 <= int(port) <= MAX_PORT):
        raise InvalidArgument(field, f"the port must be a number from 1 to {MAX_PORT}, got {text!r}")
    return Address(host, int(port))


def check_host(field: str, host: str) -> str:
    """A host by name or number, without port, scheme or brackets.

    Raises:
        InvalidArgument: it is something else.
    """
    if host.startswith("["):
        raise InvalidArgument(field, f"an IPv6 address stands without brackets here, got {host!r}")
    if ":" in host:
        if not _is_ipv6(host):
            raise InvalidArgument(field, f"must be a host without a port, got {host!r}")
    elif not host or len(host) > 253 or not all(letter.isalnum() or letter in "-._" for letter in host):
        raise InvalidArgument(field, f"must be the name or the number of a host, got {host!r}")
    return host


def _is_ipv6(host: str) -> bool:
    try:
        ipaddress.IPv6Address(host)
    except ValueError:
        return False
    return True
