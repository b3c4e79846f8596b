"""A small HTTP/1.1 server for what monitoring and telemetry talk: one port, fixed paths, whole bodies.

Whatever a client sends, it gets an answer that says what is wrong (4xx), or its connection is closed: requests, their heads,
their bodies, their duration, the time that an answer is left unread, and the number of connections are bounded.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from enum import Enum
from typing import NamedTuple

import h11

from pbkv_cluster import __version__
from pbkv_cluster.core.errors import PermissionDenied, StartupError, Unauthenticated, Unavailable
from pbkv_cluster.core.locations.addresses import join_address
from pbkv_cluster.core.security.headers import CHALLENGE, api_key_of
from pbkv_cluster.rpc.read_watch import ReadWatch
from pbkv_cluster.rpc.security import this_process

log = logging.getLogger(__name__)

_READ_BYTES = 1 << 16
_REQUEST_S = 120.0  # for a request to arrive, and between two of one connection
_STALLED_S = 60.0  # that a client may read nothing of its answer
_MAX_CONNECTIONS = 1024

Handler = Callable[[Mapping[str, str], bytes], Awaitable["HttpAnswer"]]
"""Answers a request, given its headers with names in lower case, and its body. Unavailable becomes 503."""


class HttpAnswer(NamedTuple):
    """What a client gets."""

    status: int
    kind: str  # content type
    body: bytes


class Audience(Enum):
    """Who may ask for a path, where API keys are asked for."""

    EVERYBODY = "everybody"
    TENANTS = "tenants"  # and operators
    OPERATORS = "operators"


class Route(NamedTuple):
    """What one path takes."""

    method: str
    answer: Handler
    max_body_bytes: int = 0
    audience: Audience = Audience.OPERATORS


def plain(status: int, text: str) -> HttpAnswer:
    """An answer of plain text."""
    return HttpAnswer(status, "text/plain; charset=utf-8", text.encode())


class HttpServer:
    """Serves one port until it is stopped."""

    def __init__(
        self, routes: Mapping[str, Route], max_connections: int = _MAX_CONNECTIONS, stalled_s: float = _STALLED_S
    ) -> None:
        """Args:
        routes: by path.
        max_connections: open at a time; further ones are told so and closed.
        stalled_s: seconds that a client may read nothing of its answer, after which its connection is cut.
        """
        self._routes = routes
        self._security = this_process()
        self._max_connections = max_connections
        self._stalled_s = stalled_s
        self._server: asyncio.Server | None = None
        self._connections: set[asyncio.Task[None]] = set()
        self.address = ""

    async def start(self, host: str, port: int) -> str:
        """Binds and serves. Port 0 takes a free one. Returns the address, host:port.

        Raises:
            StartupError: the address cannot be bound.
        """
        try:
            self._server = await asyncio.start_server(self._serve, host, port, **self._security.server_options())
        except OSError as error:
            raise StartupError(f"cannot listen on {join_address(host, port)}: {error.strerror}") from error
        self.address = join_address(host, self._server.sockets[0].getsockname()[1])
        return self.address

    async def stop(self) -> None:
        """Ends the connections and stops serving."""
        if self._server is not None:
            self._server.close()
            for task in self._connections:
                task.cancel()
            await asyncio.gather(*self._connections, return_exceptions=True)
            await self._server.wait_closed()

    def _refusal(self, route: Route, request: h11.Request) -> HttpAnswer | None:
        """Why the caller may not ask for a path; None: it may."""
        keyring = self._security.keyring
        if keyring is None or route.audience is Audience.EVERYBODY:
            return None
        headers = {name.decode(): value.decode("latin-1") for name, value in request.headers}
        try:
            caller = keyring.caller(api_key_of(headers))
            if route.audience is Audience.OPERATORS:
                caller.check_operator(request.target.decode("ascii", "replace"))
        except Unauthenticated as error:
            return plain(401, str(error))
        except PermissionDenied as error:
            return plain(403, str(error))
        return None

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._connections.add(task)
        writer.transport.set_write_buffer_limits(0)  # an answer is sent when nothing of it is left here
        try:
            if len(self._connections) > self._max_connections:
                full = plain(503, f"{self._max_connections} connections are open already")
                await self._send(h11.Connection(h11.SERVER), writer, full)
            else:
                await self._serve_requests(reader, writer)
        except (OSError, TimeoutError, h11.ProtocolError) as error:
            log.info("a connection is closed: %s", error or type(error).__name__)
            writer.transport.abort()  # its client may never read what is left
        except asyncio.CancelledError:
            log.debug("a connection ends with its server")
        finally:
            self._connections.discard(task)
            writer.close()

    async def _serve_requests(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connection = h11.Connection(h11.SERVER)
        while True:
            try:
                async with asyncio.timeout(_REQUEST_S):
                    answer = await self._next_answer(connection, reader, writer)
            except h11.RemoteProtocolError as error:
                answer = plain(error.error_status_hint, f"not HTTP/1.1: {error}")
            if answer is None:
                return
            await self._send(connection, writer, answer)
            if connection.our_state is not h11.DONE or connection.their_state is not h11.DONE:
                return
            connection.start_next_cycle()

    async def _send(self, connection: h11.Connection, writer: asyncio.StreamWriter, answer: HttpAnswer) -> None:
        watch = ReadWatch(writer.transport)
        watch.start(self._stalled_s)
        try:
            await _send(connection, writer, answer)
        finally:
            watch.stop()

    async def _next_answer(
        self, connection: h11.Connection, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> HttpAnswer | None:
        """Reads the next request and returns its answer; None if the connection has ended."""
        request: h11.Request | None = None
        route: Route | None = None
        body = bytearray()
        while True:
            match connection.next_event():
                case h11.NEED_DATA:
                    if connection.they_are_waiting_for_100_continue:
                        proceed = h11.InformationalResponse(status_code=100, headers=[])
                        writer.write(connection.send(proceed) or b"")
                    connection.receive_data(await reader.read(_READ_BYTES))
                case h11.Request() as request:
                    route = self._routes.get(request.target.decode("ascii", "replace").partition("?")[0])
                    if route is None:
                        return plain(404, f"there is only {', '.join(self._routes)}")
                    if request.method != route.method.encode():
                        return plain(405, "" if request.method == b"HEAD" else f"there is only {route.method}")
                    if refusal := self._refusal(route, request):
                        return refusal
                case h11.Data() as data:
                    assert route is not None
                    body += data.data
                    if len(body) > route.max_body_bytes:
                        return plain(413, f"more than {route.max_body_bytes} bytes")
                case h11.EndOfMessage():
                    assert request is not None
                    assert route is not None
                    headers = {name.decode(): value.decode("latin-1") for name, value in request.headers}
                    return await _answer(route, headers, bytes(body))
                case _:
                    return None


async def _answer(route: Route, headers: Mapping[str, str], body: bytes) -> HttpAnswer:
    try:
        return await route.answer(headers, body)
    except Unavailable as error:
        return plain(503, str(error))
    except Exception:
        log.exception("a request could not be answered")
        return plain(500, "a defect: the log has it")


async def _send(connection: h11.Connection, writer: asyncio.StreamWriter, answer: HttpAnswer) -> None:
    headers = [("Content-Type", answer.kind), ("Content-Length", str(len(answer.body))), ("Server", f"pbkv/{__version__}")]
    if connection.their_state is not h11.DONE:
        headers.append(("Connection", "close"))
    if answer.status == 401:
        headers.append(("WWW-Authenticate", CHALLENGE))
    response = h11.Response(status_code=answer.status, headers=headers)
    events = (response, h11.Data(data=answer.body), h11.EndOfMessage())
    writer.write(
        b"".join(connection.send(event) or b"" for event in events)
    )  # at once: a call of the kernel for each costs more
    await writer.drain()
