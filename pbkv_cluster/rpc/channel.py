"""Channels between the processes of a cluster."""

from collections.abc import Sequence

from grpc import aio

from pbkv_cluster.core.locations.addresses import parse_address

MAX_MESSAGE_BYTES = 64 << 20

# One keep-alive policy for both sides. A ping notices within half a minute that a peer has vanished without closing the
# connection (its node lost power). A server that does not allow what its clients do takes their pings for an attack, and
# closes a connection that has been idle for a minute and a half (`too_many_pings`). gRPC ignores options that it does not
# know, so a name with an error in it has the same effect.
_KEEP_ALIVE_S = 20


def keep_alive(interval_s: float) -> list[tuple[str, int]]:
    """Options of a channel or a server that pings every `interval_s` seconds, and lets its peer do so twice as often."""
    interval_ms = int(interval_s * 1000)
    return [
        ("grpc.keepalive_time_ms", interval_ms),
        ("grpc.keepalive_timeout_ms", interval_ms // 2),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.max_pings_without_data", 0),
        ("grpc.http2.min_ping_interval_without_data_ms", interval_ms // 2),
    ]


# For both sides of every connection.
MESSAGE_OPTIONS: list[tuple[str, int]] = [
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    *keep_alive(_KEEP_ALIVE_S),
]

# For every channel, including those of the Python client.
CHANNEL_OPTIONS: list[tuple[str, int | str]] = [
    *MESSAGE_OPTIONS,
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 2_000),  # also the time limit of one attempt to connect
    ("grpc.max_reconnect_backoff_ms", 500),  # so much later than a restarted peer serves, at most, is it found again
    ("grpc.enable_http_proxy", 0),
]


def connect(address: str, field: str = "address", options: Sequence[tuple[str, int | str]] = CHANNEL_OPTIONS) -> aio.Channel:
    """A channel to `address` (host:port). It connects on its first call, and again if the connection is lost.

    Raises:
        InvalidArgument: `address` is no host:port; names `field`. gRPC itself takes a port modulo 65,536.
    """
    parse_address(field, address)
    return aio.insecure_channel(address, options=options)
