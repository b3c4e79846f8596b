"""The gateways that a client may call."""

import os
import socket
from collections.abc import Sequence

from pbkv_cluster.core.errors import InvalidArgument
from pbkv_cluster.core.locations.addresses import ADDRESS_VARIABLE, parse_address

DEFAULT_ENDPOINT = "127.0.0.1:26100"
MAX_ENDPOINTS = 64
_PROBE_S = 1.0


def parse_endpoints(endpoint: str | Sequence[str]) -> tuple[str, ...]:
    """The addresses of gateways, each once, in order of preference.

    Args:
        endpoint: one host:port, several with commas between them, or a sequence of these; empty: those that PBKV_ADDRESS names,
            or the default port of this machine.

    Raises:
        InvalidArgument: one of them is no host:port, or there are more than 64.
    """
    given = endpoint or os.environ.get(ADDRESS_VARIABLE, "") or DEFAULT_ENDPOINT
    texts = given.split(",") if isinstance(given, str) else [part for each in given for part in each.split(",")]
    endpoints = tuple(dict.fromkeys(text.strip() for text in texts))
    if len(endpoints) > MAX_ENDPOINTS:
        raise InvalidArgument("endpoint", f"names {len(endpoints)} gateways, more than {MAX_ENDPOINTS}")
    for each in endpoints:
        parse_address("endpoint", each)
    return endpoints


def first_listening(endpoints: Sequence[str]) -> str:
    """The first of several addresses at which somebody listens; the first of all if nobody does."""
    if len(endpoints) == 1:
        return endpoints[0]
    for each in endpoints:
        try:
            socket.create_connection(parse_address("endpoint", each), _PROBE_S).close()
        except OSError:
            continue
        return each
    return endpoints[0]
