"""One HTTP connection: how long a client may take to write and to read, and how many connections there may be."""

import asyncio
from typing import Any

import h11
from uvicorn import Config
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.server import ServerState

from pbkv_cluster.rpc.read_watch import ReadWatch

_FULL = (
    b"HTTP/1.1 503 Service Unavailable\r\ncontent-type: text/plain\r\nretry-after: 1\r\nconnection: close\r\n"
    b"content-length: 20\r\n\r\ntoo many connections"
)
FLUSH_S = 10.0  # that a client may read nothing of the rest of an answer, once its connection is being closed
STALLED_S = 60.0  # that a client may read nothing of what fills the buffers of its connection


class _Transport:
    """A transport that is closed soon after `close`, even if the client does not read what is left."""

    def __init__(self, transport: asyncio.Transport) -> None:
        self._transport = transport
        self._rest = ReadWatch(transport)

    def close(self) -> None:
        self._transport.close()
        self.cut_unread()

    def cut_unread(self) -> None:
        """Cuts the connection once its client has stopped reading the rest."""
        self._rest.start(FLUSH_S)

    def lost(self) -> None:
        """The connection has ended."""
        self._rest.stop()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)


class BoundedProtocol(H11Protocol):
    """HTTP/1.1 with a deadline by which a request must have arrived as a whole, however slowly its bytes drip.

    A client that stops reading its answer is cut, too, which ends what works on it.
    """

    def __init__(self, config: Config, state: ServerState, read_timeout_s: float, max_connections: int) -> None:
        """Args:
        config: of uvicorn, with the application.
        state: shared by all connections of the port.
        read_timeout_s: seconds for a request, from the connection or from its first byte to its last.
        max_connections: beyond it, connections are answered with 503 and closed.
        """
        super().__init__(config, state, {})
        self._read_timeout_s = read_timeout_s
        self._max_connections = max_connections
        self._deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        self._bounded = _Transport(transport)
        self._stalled = ReadWatch(transport)
        super().connection_made(self._bounded)  # type: ignore[arg-type]  # does all that a transport does
        if len(self.connections) > self._max_connections:
            transport.write(_FULL)
            self._close()
            return
        self._set_deadline()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._set_deadline()

    def connection_lost(self, exc: Exception | None) -> None:
        self._clear_deadline()
        self._stalled.stop()
        self._bounded.lost()
        super().connection_lost(exc)

    def eof_received(self) -> None:
        super().eof_received()  # after which asyncio closes the transport
        self._end_answer()
        self._bounded.cut_unread()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._stalled.start(STALLED_S)

    def resume_writing(self) -> None:
        self._stalled.stop()
        super().resume_writing()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._set_deadline()

    def timeout_keep_alive_handler(self) -> None:
        super().timeout_keep_alive_handler()
        self._close()

    def _set_deadline(self) -> None:
        """The deadline runs while a request is awaited or on its way, and is not moved by what arrives of it."""
        idle = self.conn.their_state is h11.IDLE and self.timeout_keep_alive_task is not None
        complete = self.conn.their_state in (h11.DONE, h11.MUST_CLOSE, h11.CLOSED)
        if idle or complete or self.transport.is_closing():
            self._clear_deadline()
        elif self._deadline is None:
            self._deadline = self.loop.call_later(self._read_timeout_s, self._close)

    def _clear_deadline(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _close(self) -> None:
        """Closes the connection, whose answer may not be complete."""
        self._end_answer()
        self.transport.close()

    def _end_answer(self) -> None:
        """Nothing more is written of an answer that is not complete, and what works on it is told."""
        if self.cycle is not None and not self.cycle.response_complete:
            self.cycle.disconnected = True
            self.cycle.message_event.set()
