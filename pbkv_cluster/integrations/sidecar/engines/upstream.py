"""Requests to one engine, as they came in, and its answers as they come."""

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field

import httpcore2

from pbkv_cluster.core.errors import DeadlineExceeded, PbkvError
from pbkv_cluster.gateway.http.wire.problems import BadGateway

Headers = Sequence[tuple[bytes, bytes]]

KEY_HEADERS = (b"authorization", b"x-api-key")  # of requests
# Of one connection, not of the message (RFC 9110, 7.6.1); the length is that of the body that is sent.
_OF_CONNECTION = frozenset(
    (b"connection", b"keep-alive", b"proxy-authenticate", b"proxy-authorization", b"te", b"trailer", b"transfer-encoding")
) | {b"upgrade", b"proxy-connection", b"expect"}
# vLLM's server closes connections that are idle for 5 seconds, and a request must not meet one that is being closed.
_KEEP_ALIVE_S = 3.0
_MAX_CONNECTIONS = 4096
_NOT_REACHED = (httpcore2.ConnectError, httpcore2.ConnectTimeout, httpcore2.PoolTimeout)
_CLOSED = (httpcore2.ReadError, httpcore2.WriteError, httpcore2.RemoteProtocolError)


class EngineAway(PbkvError):
    """The engine was not reached, and so knows nothing of the request: another one can be asked."""


class NoAnswer(PbkvError):
    """The connection broke before the answer. The engine may have the request, may work on it, and may be well."""


@dataclass(frozen=True, slots=True)
class Outgoing:
    """A request on its way to an engine."""

    method: str
    target: bytes  # path and query
    headers: Headers  # as they came in
    body: bytes


@dataclass(slots=True)
class Incoming:
    """An answer whose head has arrived. It must be closed."""

    status: int
    headers: list[tuple[bytes, bytes]]
    _response: httpcore2.Response
    _engine: str
    closed: bool = field(default=False)

    def header(self, name: bytes) -> bytes:
        """The value of a header, by its name in lower case; empty: it has none."""
        return next((value for each, value in self.headers if each.lower() == name), b"")

    async def pieces(self) -> AsyncIterator[bytes]:
        """The body as it comes.

        Raises:
            BadGateway: the engine has broken the connection.
            DeadlineExceeded: it has said nothing for too long.
        """
        try:
            async for piece in self._response.aiter_stream():
                yield piece
        except httpcore2.ReadTimeout:
            raise DeadlineExceeded(f"engine {self._engine} has stopped answering") from None
        except _CLOSED as error:
            raise BadGateway(f"engine {self._engine} has broken its answer off: {_why(error)}") from error

    async def close(self) -> None:
        """Ends the exchange: an engine whose answer is not complete sees that its client has gone."""
        if not self.closed:
            self.closed = True
            await self._response.aclose()


class Upstream:
    """The HTTP port of one engine."""

    def __init__(self, url: str, connect_timeout_s: float, answer_timeout_s: float, api_key: str = "") -> None:
        """Args:
        url: where it serves, without a path.
        connect_timeout_s: for a connection.
        answer_timeout_s: without a byte of an answer.
        api_key: that the engine is shown, instead of what a request has; empty: that.
        """
        self._key = f"Bearer {api_key}".encode() if api_key else b""
        self._url = httpcore2.URL(url)
        self._name = url.partition("://")[2]
        self._timeouts = {
            "connect": connect_timeout_s,
            "pool": connect_timeout_s,
            "write": answer_timeout_s,
            "read": answer_timeout_s,
        }
        self._pool = httpcore2.AsyncConnectionPool(max_connections=_MAX_CONNECTIONS, keepalive_expiry=_KEEP_ALIVE_S)

    async def send(self, request: Outgoing, answer_timeout_s: float | None = None) -> Incoming:
        """Sends a request, and returns when the head of the answer has arrived.

        Args:
            request: with the headers of its client.
            answer_timeout_s: without a byte, if another than usual.

        Raises:
            EngineAway, NoAnswer: see there.
            DeadlineExceeded: the engine has not answered in time.
        """
        origin = self._url
        url = httpcore2.URL(scheme=origin.scheme, host=origin.host, port=origin.port, target=request.target)
        headers = [
            (b"host", self._name.encode()),
            *(
                (name, value)
                for name, value in _of_message(request.headers)
                if name.lower() not in (b"host", b"content-length", *(KEY_HEADERS if self._key else ()))
            ),
        ]
        if self._key:
            headers.append((b"authorization", self._key))
        if request.body or request.method in ("POST", "PUT", "PATCH"):
            headers.append((b"content-length", b"%d" % len(request.body)))
        timeouts = self._timeouts if answer_timeout_s is None else {**self._timeouts, "read": answer_timeout_s}
        sent = httpcore2.Request(request.method, url, headers=headers, content=request.body, extensions={"timeout": timeouts})
        try:
            response = await self._pool.handle_async_request(sent)
        except httpcore2.ReadTimeout:
            raise DeadlineExceeded(f"engine {self._name} has not answered in {timeouts['read']:g} s") from None
        except _NOT_REACHED as error:
            raise EngineAway(f"engine {self._name} is away: {_why(error)}") from error
        except (*_CLOSED, httpcore2.WriteTimeout) as error:
            raise NoAnswer(f"engine {self._name} has not answered: {_why(error)}") from error
        return Incoming(response.status, _of_message(response.headers), response, self._name)

    async def close(self) -> None:
        """Closes all connections."""
        await self._pool.aclose()


def _of_message(headers: Headers) -> list[tuple[bytes, bytes]]:
    """The headers without those of the connection, to which `Connection` adds by name (RFC 9110, 7.6.1)."""
    listed = b",".join(value for name, value in headers if name.lower() == b"connection")
    gone = _OF_CONNECTION | {name.strip().lower() for name in listed.split(b",")}
    return [(name, value) for name, value in headers if name.lower() not in gone]


def _why(error: Exception) -> str:
    return str(error) or type(error).__name__
