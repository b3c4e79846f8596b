"""The port of an HTTP server: bounded connections of an application."""

import asyncio
from collections.abc import Callable
from typing import Any

import uvicorn
from uvicorn.server import ServerState

from pbkv_cluster.core.config import GatewayConfig
from pbkv_cluster.core.errors import StartupError
from pbkv_cluster.core.locations.addresses import join_address
from pbkv_cluster.gateway.http.wire.connection import BoundedProtocol
from pbkv_cluster.rpc.security import this_process

_KEEP_ALIVE_S = 75  # that a connection may be idle between two requests
_MAX_HEADER_BYTES = 64 << 10


class HttpPort:
    """Serves an ASGI application until it is stopped."""

    def __init__(self, app: Any, settings: GatewayConfig, *, date_header: bool = True) -> None:
        """Args:
        app: an ASGI application.
        settings: the bounds on connections and on the time of a request.
        date_header: of answers; false: the application gives it.
        """
        self._state = ServerState()
        self._server: asyncio.Server | None = None
        config = uvicorn.Config(
            app,
            lifespan="off",
            ws="none",
            http="h11",
            log_config=None,
            log_level="critical",  # of malformed requests, which any client can send without end
            access_log=False,
            proxy_headers=False,
            server_header=False,
            date_header=date_header,
            timeout_keep_alive=_KEEP_ALIVE_S,
            h11_max_incomplete_event_size=_MAX_HEADER_BYTES,
        )
        config.load()
        self._connect: Callable[[], asyncio.Protocol] = lambda: BoundedProtocol(
            config, self._state, settings.http_read_timeout_s, settings.http_max_connections
        )
        self.address = ""

    async def start(self, host: str, port: int) -> str:
        """Serves; port 0 takes a free one. Returns the address, host:port.

        Raises:
            StartupError: the address cannot be bound.
        """
        try:
            self._server = await asyncio.get_running_loop().create_server(
                self._connect, host, port, backlog=2048, **this_process().server_options()
            )
        except OSError as error:
            raise StartupError(f"cannot listen on {join_address(host, port)}: {error.strerror}") from error
        self.address = join_address(host, self._server.sockets[0].getsockname()[1])
        return self.address

    @property
    def connections(self) -> int:
        """Those that are open."""
        return len(self._state.connections)

    async def stop(self) -> None:
        """Refuses new connections, cancels what runs and closes all connections."""
        if self._server is None:
            return
        self._server.close()
        running = list(self._state.tasks)
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)
        for connection in list(self._state.connections):
            connection.transport.abort()
