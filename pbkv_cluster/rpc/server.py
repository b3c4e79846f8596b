"""The gRPC server of every process: API keys, TLS, typed errors, health, reflection, and a port of its own."""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import grpc
from google.protobuf.descriptor import ServiceDescriptor
from grpc import aio
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from pbkv_cluster.core.errors import StartupError
from pbkv_cluster.core.locations.addresses import MAX_PORT, join_address
from pbkv_cluster.rpc.authentication import AuthenticationInterceptor
from pbkv_cluster.rpc.channel import MESSAGE_OPTIONS
from pbkv_cluster.rpc.errors import ErrorInterceptor
from pbkv_cluster.rpc.security import this_process

# Calls that wait until the event loop takes them. Beyond this gRPC itself drops calls, at random, and a client sees CANCELLED;
# the default is 1,000. A call that has been taken is refused with a status and a reason.
_MAX_PENDING_CALLS = 65_536

SERVER_OPTIONS: list[tuple[str, int]] = [
    ("grpc.so_reuseport", 0),  # so that a second server on the same port fails to start instead of getting half of the calls
    ("grpc.server.max_pending_requests", _MAX_PENDING_CALLS),
    ("grpc.server.max_pending_requests_hard_limit", _MAX_PENDING_CALLS),
    *MESSAGE_OPTIONS,
]

# Of a server that asks for no API keys: whoever connects is a stranger until its first message, which is short, says who it is.
# What strangers may have this process hold is little: parts of messages, streams, and connections that nothing is done with.
STRANGER_MESSAGE_BYTES = 1 << 10
STRANGER_STREAMS = 128  # at a time, of one connection; a client has one for each of its tenants
_STRANGER_CONNECTIONS = 5_120  # of all clients; further ones are closed
_STRANGER_IDLE_S = 10
_STRANGER_OPTIONS: list[tuple[str, int]] = list(
    {
        **dict(SERVER_OPTIONS),
        "grpc.max_receive_message_length": STRANGER_MESSAGE_BYTES,
        "grpc.http2.lookahead_bytes": 4 * STRANGER_MESSAGE_BYTES,
        "grpc.max_concurrent_streams": STRANGER_STREAMS,
        "grpc.max_allowed_incoming_connections": _STRANGER_CONNECTIONS,
        "grpc.max_connection_idle_ms": 1000 * _STRANGER_IDLE_S,
        "grpc.server_handshake_timeout_ms": 1000 * _STRANGER_IDLE_S,
        "grpc.server.max_pending_requests": 1_000,
        "grpc.server.max_pending_requests_hard_limit": 1_000,
    }.items()
)


class RpcServer:
    """Serves the services that were added. Its health is SERVING from `start` until `stop`.

    To those whom it asks for no API key it serves nothing besides: streams of health and of reflection cost as much as others.
    """

    def __init__(self, *, is_public: bool = False, asks_for_keys: bool = True) -> None:
        """Args:
        is_public: clients outside the cluster call it, too, which have no certificates of their own.
        asks_for_keys: for API keys, where credentials are configured; otherwise its services find out whom they serve, from
            messages of `STRANGER_MESSAGE_BYTES` at most.
        """
        self._security = this_process()
        self._is_public = is_public
        self._for_tenants: set[str] = set()
        interceptors: list[aio.ServerInterceptor] = [ErrorInterceptor()]
        if self._security.keyring is not None and asks_for_keys:
            interceptors.insert(0, AuthenticationInterceptor(self._security.keyring, self._for_tenants))
        options = SERVER_OPTIONS if asks_for_keys else _STRANGER_OPTIONS
        self._server = aio.server(interceptors=interceptors, options=options)
        self._health = health.aio.HealthServicer()
        self._names = [health.SERVICE_NAME, reflection.SERVICE_NAME]
        self._tells_of_itself = asks_for_keys
        if self._tells_of_itself:
            health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        self._before_stop: list[Callable[[], None]] = []
        self.address = ""

    def before_stop(self, call: Callable[[], None]) -> None:
        """Has `stop` make a call first, which has streams end that would go on for ever."""
        self._before_stop.append(call)

    def add(
        self,
        descriptor: ServiceDescriptor,
        register: Callable[[Any, aio.Server], None],
        servicer: object,
        for_tenants: Iterable[str] = (),
    ) -> None:
        """Adds a service.

        Args:
            descriptor: the service's, from its `_pb2` module.
            register: the generated `add_…Servicer_to_server`.
            servicer: the implementation, with asynchronous methods.
            for_tenants: methods that tenants may call; the others are for operators, and for members.
        """
        register(servicer, self._server)
        self._for_tenants.update(f"/{descriptor.full_name}/{method}" for method in for_tenants)
        self._names.append(descriptor.full_name)

    async def start(self, host: str, port: int, on_bound: Callable[[str], None] = lambda address: None) -> str:
        """Binds and serves; port 0 takes a free one. Returns the address, host:port.

        Args:
            host: to bind.
            port: to bind.
            on_bound: told the address before the first call is taken.

        Raises:
            StartupError: the address cannot be bound.
        """
        wanted = join_address(host, port)
        if not 0 <= port <= MAX_PORT:  # gRPC takes it modulo 65,536
            raise StartupError(f"cannot listen on {wanted}: a port is from 0 to {MAX_PORT}")
        if self._tells_of_itself:
            reflection.enable_server_reflection(self._names, self._server)
        try:
            bound = self._bind(wanted)
        except RuntimeError as error:
            raise StartupError(f"cannot listen on {wanted}: is the port in use? ({error})") from error
        self.address = join_address(host, bound)
        on_bound(self.address)
        await self._server.start()
        for name in ("", *self._names):
            await self._health.set(name, health_pb2.HealthCheckResponse.SERVING)
        return self.address

    def _bind(self, wanted: str) -> int:
        tls = self._security.tls
        if tls is None:
            return self._server.add_insecure_port(wanted)
        own = [(Path(tls.key).read_bytes(), Path(tls.certificate).read_bytes())]
        mutual = bool(tls.ca) and not self._is_public
        credentials = grpc.ssl_server_credentials(own, tls.trusted() if mutual else None, require_client_auth=mutual)
        return self._server.add_secure_port(wanted, credentials)

    async def stop(self, grace_s: float = 1.0) -> None:
        """Reports NOT_SERVING, refuses new calls, and cancels calls that still run after `grace_s` seconds."""
        await self._health.enter_graceful_shutdown()
        for call in self._before_stop:
            call()
        await self._server.stop(grace_s)

    async def wait(self) -> None:
        """Returns when the server has stopped."""
        await self._server.wait_for_termination()
