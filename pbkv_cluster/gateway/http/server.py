"""The HTTP server of a gateway: its parts put together."""

from pbkv_cluster.core.config import Config
from pbkv_cluster.gateway.http.app import make_app
from pbkv_cluster.gateway.http.generation.generation import Generations
from pbkv_cluster.gateway.http.openai.served_model import ServedModel
from pbkv_cluster.gateway.http.sessions.sessions import Sessions
from pbkv_cluster.gateway.http.tools.conversation import ToolWriter
from pbkv_cluster.gateway.http.tools.formats import tool_format
from pbkv_cluster.gateway.http.wire.body import BodyReader
from pbkv_cluster.gateway.http.wire.port import HttpPort
from pbkv_cluster.gateway.server import GatewayServer


class HttpServer:
    """Serves OpenAI's and Anthropic's APIs on a port of its own."""

    def __init__(self, config: Config, gateway: GatewayServer) -> None:
        """Raises:
        InvalidArgument: the configuration names an unknown tool format.
        """
        settings = config.gateway
        template = gateway.codec.template
        tools = ToolWriter(tool_format(config.model.tool_format, template.source), template.knows_tools)
        sessions = Sessions(gateway.workflows, settings.http_recognition_bytes)
        app, self.openapi = make_app(
            Generations(gateway.submission, sessions, gateway.codec, tools),
            gateway.prompts,
            BodyReader(settings.http_max_body_bytes, settings.max_step_bytes),
            ServedModel(settings.http_model or model_name(config.model.path)),
            gateway.pool,
            gateway.caches.Prefetch,
        )
        self._port = HttpPort(app, settings)

    @property
    def address(self) -> str:
        """Where it serves, host:port; empty before the start."""
        return self._port.address

    async def start(self, host: str, port: int) -> str:
        """Serves; port 0 takes a free one. Returns the address, host:port.

        Raises:
            StartupError: the address cannot be bound.
        """
        return await self._port.start(host, port)

    async def stop(self) -> None:
        """Refuses new connections, cancels what runs and closes all connections."""
        await self._port.stop()


def model_name(path: str) -> str:
    """The name of a model at a path or with a hub id: its last part."""
    return path.rstrip("/").rpartition("/")[2] or "model"
