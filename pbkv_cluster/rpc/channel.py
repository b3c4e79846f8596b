"""Channels between the processes of a cluster."""

from grpc import aio

from pbkv_cluster.core.locations.addresses import parse_address

_MAX_MESSAGE_BYTES = 64 << 20

# Keep-alive pings notice within half a minute that a peer has vanished without closing the connection (its node lost power).
MESSAGE_OPTIONS: list[tuple[str, int]] = [
    ("grpc.max_receive_message_length", _MAX_MESSAGE_BYTES),
    ("grpc.max_send_message_length", _MAX_MESSAGE_BYTES),
    ("grpc.keepalive_time_ms", 20_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.http2.min_recv_ping_interval_without_data_ms", 10_000),
]

# For every channel, including those of the Python client.
CHANNEL_OPTIONS: list[tuple[str, int]] = [
    *MESSAGE_OPTIONS,
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 2_000),  # also the time limit of one attempt to connect
    ("grpc.max_reconnect_backoff_ms", 2_000),
    ("grpc.enable_http_proxy", 0),
]


def connect(address: str, field: str = "address") -> aio.Channel:
    """A channel to `address` (host:port). It connects on its first call, and again if the connection is lost.

    Raises:
        InvalidArgument: `address` is no host:port; names `field`. gRPC itself takes a port modulo 65,536.
    """
    parse_address(field, address)
    return aio.insecure_channel(address, options=CHANNEL_OPTIONS)
