"""Cuts a connection whose other side has stopped reading, and never one that reads, however slowly."""

import asyncio
import logging
import socket
import struct
from typing import Any

log = logging.getLogger(__name__)

_ACKNOWLEDGED = struct.Struct("=Q")  # bytes_acked in struct tcp_info of Linux (linux/tcp.h)
_ACKNOWLEDGED_AT = 120  # bytes into it


class ReadWatch:
    """Of one connection.

    What shows that the other side reads is that its kernel acknowledges bytes: it does so only while it has room. The buffer
    of the transport would tell less: the kernel takes from it in large steps, and asyncio's TLS does not count all in it.
    """

    def __init__(self, transport: Any) -> None:
        """Args:
        transport: of a TCP connection, or of TLS over one.
        """
        self._transport = transport
        self._timer: asyncio.TimerHandle | None = None

    def start(self, patience_s: float) -> None:
        """Until `stop`, or the end of the connection, it is cut once nothing was read for `patience_s` seconds."""
        self.stop()
        self._wait(patience_s, _read_bytes(self._transport))

    def stop(self) -> None:
        """Leaves the connection as it is."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _wait(self, patience_s: float, read: int | None) -> None:
        if read is not None:
            self._timer = asyncio.get_running_loop().call_later(patience_s, self._check, patience_s, read)

    def _check(self, patience_s: float, before: int) -> None:
        self._timer = None
        read = _read_bytes(self._transport)
        if read == before:
            log.info("a connection is cut: what was sent on it is left unread for %g s", patience_s)
            self._transport.abort()
        else:
            self._wait(patience_s, read)


def _read_bytes(transport: Any) -> int | None:
    """Bytes that the other side has acknowledged, of all that were sent; None: the connection has ended."""
    connection = transport.get_extra_info("socket")
    if connection is None or connection.fileno() < 0:
        return None
    size = _ACKNOWLEDGED_AT + _ACKNOWLEDGED.size
    (read,) = _ACKNOWLEDGED.unpack_from(connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, size), _ACKNOWLEDGED_AT)
    return int(read)
