"""A socket, plain or with TLS, on which whole pieces are sent and received within a time limit."""

import contextlib
import socket
import ssl
import time


class Stream:
    """Not safe for threads, but for `end`, which ends what another thread waits for."""

    def __init__(self, connection: socket.socket, timeout_s: float) -> None:
        """Args:
        connection: a connected one, which is this object's from now on.
        timeout_s: within which each piece must have passed, however it trickles.
        """
        self._socket = connection
        self._is_ended = False
        self.timeout_s = timeout_s
        connection.settimeout(timeout_s)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def wrap(self, tls: ssl.SSLContext, server_side: bool = False, server_hostname: str | None = None) -> None:
        """Goes on with TLS. Before anything has been sent.

        Raises:
            OSError: the other side cannot be trusted, or does not trust this one; or `end` was called.
        """
        # The handshake is made later, so that `end` reaches it.
        self._socket = wrapped = tls.wrap_socket(
            self._socket, server_side=server_side, server_hostname=server_hostname, do_handshake_on_connect=False
        )
        if self._is_ended:  # maybe while it was wrapped: what `end` then shuts down is an empty hull
            raise ConnectionError("the connection has been ended")
        wrapped.do_handshake()

    def send(self, piece: bytes | memoryview) -> None:
        """Raises:
        OSError: the connection is lost; TimeoutError if the other side does not take it in time.
        """
        self._socket.sendall(piece)

    def receive(self, size: int, timeout_s: float | None = None) -> bytes:
        """See `receive_into`."""
        piece = bytearray(size)
        self.receive_into(memoryview(piece), timeout_s)
        return bytes(piece)

    def receive_into(self, target: memoryview, timeout_s: float | None = None) -> None:
        """Fills `target`.

        Args:
            target: of bytes.
            timeout_s: another limit for this piece.

        Raises:
            OSError: the connection is lost or closed; TimeoutError if the other side does not send it in time.
        """
        limit = self.timeout_s if timeout_s is None else timeout_s
        deadline, filled, size = time.monotonic() + limit, 0, len(target)
        while filled < size:
            self._socket.settimeout(max(1e-3, deadline - time.monotonic()))
            received = self._socket.recv_into(target[filled:])
            if not received:
                raise ConnectionError("the connection was closed")
            filled += received
        self._socket.settimeout(self.timeout_s)

    def end(self) -> None:
        """Ends the connection, at once; the thread that uses it closes it."""
        self._is_ended = True  # before the socket is looked up: see `wrap`
        with contextlib.suppress(OSError):  # the other side was faster
            socket.socket.shutdown(self._socket, socket.SHUT_RDWR)  # that of TLS would be in the way of the other thread

    def close(self) -> None:
        """Ends the connection, and frees it."""
        self.end()
        self._socket.close()
