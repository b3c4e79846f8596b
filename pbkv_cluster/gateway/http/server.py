"""The HTTP server of a gateway: its parts put together, its port."""

import asyncio
from collections.abc import Callable

import uvicorn
from uvicorn.server import ServerState

from pbkv_cluster.core.config import Config
from pbkv_cluster.core.errors import StartupError
from pbkv_cluster.core.locations.addresses import join_address
from pbkv_cluster.gateway.http.app import make_app
from pbkv_cluster.gateway.http.generation.generation import Generations
from pbkv_cluster.gateway.http.openai.served_model import ServedModel
from pbkv_cluster.gateway.http.sessions.sessions import Sessions
from pbkv_cluster.gateway.http.tools.conversation import ToolWriter
from pbkv_cluster.gateway.http.tools.formats import tool_format
from pbkv_cluster.gateway.http.wire.body import BodyReader
from pbkv_cluster.gateway.http.wire.connection import BoundedProtocol
from pbkv_cluster.gateway.server import GatewayServer
from pbkv_cluster.rpc.security import this_process

_KEEP_ALIVE_S = 75  # that a connection may be idle between two requests
_MAX_HEADER_BYTES = 64 << 10


class HttpServer:
    """Serves OpenAI's and Anthropic's APIs on a port of its own."""

    def __init__(self, config: Config, gateway: GatewayServer) -> None:
        """Raises:
        InvalidArgument: the configuration names an unknown tool format.
        """
        settings = config.gateway
        self._state = ServerState()
        self._server: asyncio.Server | None = None
        template = gateway.codec.template
        tools = ToolWriter(tool_format(config.model.tool_format, template.source), template.knows_tools)
        sessions = Sessions(gateway.workflows, settings.http_recognition_bytes)
        app, self.openapi = make_app(
            Generations(gateway.submission, sessions, gateway.codec, tools),
            BodyReader(settings.http_max_body_bytes, settings.max_step_bytes),
            ServedModel(settings.http_model or model_name(config.model.path)),
            gateway.pool,
        )
        uvicorn_config = uvicorn.Config(
            app,
            lifespan="off",
            ws="none",
            http="h11",
            log_config=None,
            log_level="critical",  # of malformed requests, which any client can send without end
            access_log=False,
            proxy_headers=False,
            server_header=False,
            timeout_keep_alive=_KEEP_ALIVE_S,
            h11_max_incomplete_event_size=_MAX_HEADER_BYTES,
        )
        uvicorn_config.load()
        self._connect: Callable[[], asyncio.Protocol] = lambda: BoundedProtocol(
            uvicorn_config, self._state, settings.http_read_timeout_s, settings.http_max_connections
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


def model_name(path: str) -> str:
    """The name of a model at a path or with a hub id: its last part."""
    return path.rstrip("/").rpartition("/")[2] or "model"
