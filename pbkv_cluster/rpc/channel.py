"""Channels between the processes of a cluster."""

from collections.abc import Sequence
from pathlib import Path
from typing import cast

import grpc
from grpc import aio

from pbkv_cluster.core.locations.addresses import parse_address
from pbkv_cluster.core.security.tls import Tls
from pbkv_cluster.rpc.metadata_channel import Metadata, MetadataChannel
from pbkv_cluster.rpc.security import Access, this_process

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
    ("grpc.http2.bdp_probe", 0),
    ("grpc.http2.lookahead_bytes", 1 << 20),
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


def connect(
    address: str,
    field: str = "address",
    options: Sequence[tuple[str, int | str]] = CHANNEL_OPTIONS,
    access: Access | None = None,
) -> aio.Channel:
    """A channel to `address` (host:port). It connects on its first call, and again if the connection is lost.

    Args:
        address: of the server.
        field: its name, for the error.
        options: of gRPC.
        access: what the connection shows; None: that of this process.

    Raises:
        InvalidArgument: `address` is no host:port; names `field`. gRPC itself takes a port modulo 65,536.
    """
    parse_address(field, address)
    access = access or this_process().access
    if access.tls is None:
        channel = aio.insecure_channel(address, options=options)
    else:
        channel = aio.secure_channel(address, _credentials(access.tls), options=[*options, *_name(access.tls)])
    return cast(aio.Channel, MetadataChannel(channel, _metadata(access))) if access.api_key else channel


def connect_blocking(
    address: str, options: Sequence[tuple[str, int | str]] = CHANNEL_OPTIONS, access: Access | None = None
) -> grpc.Channel:
    """The same without asyncio, for an address that has been checked."""
    access = access or this_process().access
    if access.tls is None:
        channel = grpc.insecure_channel(address, options=options)
    else:
        channel = grpc.secure_channel(address, _credentials(access.tls), options=[*options, *_name(access.tls)])
    return cast(grpc.Channel, MetadataChannel(channel, _metadata(access))) if access.api_key else channel


def _credentials(tls: Tls) -> grpc.ChannelCredentials:
    own = (Path(tls.key).read_bytes(), Path(tls.certificate).read_bytes()) if tls.certificate else (None, None)
    return grpc.ssl_channel_credentials(tls.trusted(), *own)


def _name(tls: Tls) -> list[tuple[str, str]]:
    return [("grpc.ssl_target_name_override", tls.name)] if tls.name else []


def _metadata(access: Access) -> Metadata:
    return (("authorization", f"Bearer {access.api_key}"),)
