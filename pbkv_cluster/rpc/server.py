"""The gRPC server of every process: typed errors, health, reflection, and a port that it shares with no other process."""

from collections.abc import Callable
from typing import Any

from google.protobuf.descriptor import ServiceDescriptor
from grpc import aio
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from pbkv_cluster.core.errors import StartupError
from pbkv_cluster.core.locations.addresses import MAX_PORT, join_address
from pbkv_cluster.rpc.channel import MESSAGE_OPTIONS
from pbkv_cluster.rpc.errors import ErrorInterceptor

# Calls that wait until the event loop takes them. Beyond this gRPC itself drops calls, at random, and a client sees CANCELLED;
# the default is 1,000. A call that has been taken is refused with a status and a reason.
_MAX_PENDING_CALLS = 65_536

SERVER_OPTIONS: list[tuple[str, int]] = [
    ("grpc.so_reuseport", 0),  # so that a second server on the same port fails to start instead of getting half of the calls
    ("grpc.server.max_pending_requests", _MAX_PENDING_CALLS),
    ("grpc.server.max_pending_requests_hard_limit", _MAX_PENDING_CALLS),
    *MESSAGE_OPTIONS,
]


class RpcServer:
    """Serves the services that were added. Its health is SERVING from `start` until `stop`."""

    def __init__(self) -> None:
        self._server = aio.server(interceptors=[ErrorInterceptor()], options=SERVER_OPTIONS)
        self._health = health.aio.HealthServicer()
        self._names = [health.SERVICE_NAME, reflection.SERVICE_NAME]
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        self.address = ""

    def add(self, descriptor: ServiceDescriptor, register: Callable[[Any, aio.Server], None], servicer: object) -> None:
        """Adds a service.

        Args:
            descriptor: the service's, from its `_pb2` module.
            register: the generated `add_…Servicer_to_server`.
            servicer: the implementation, with asynchronous methods.
        """
        register(servicer, self._server)
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
        reflection.enable_server_reflection(self._names, self._server)
        try:
            bound = self._server.add_insecure_port(wanted)
        except RuntimeError as error:
            raise StartupError(f"cannot listen on {wanted}: is the port in use? ({error})") from error
        self.address = join_address(host, bound)
        on_bound(self.address)
        await self._server.start()
        for name in ("", *self._names):
            await self._health.set(name, health_pb2.HealthCheckResponse.SERVING)
        return self.address

    async def stop(self, grace_s: float = 1.0) -> None:
        """Reports NOT_SERVING, refuses new calls, and cancels calls that still run after `grace_s` seconds."""
        await self._health.enter_graceful_shutdown()
        await self._server.stop(grace_s)

    async def wait(self) -> None:
        """Returns when the server has stopped."""
        await self._server.wait_for_termination()
