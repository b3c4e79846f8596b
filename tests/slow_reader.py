"""A client that reads an answer slowly, but steadily: some of it several times within a server's patience."""

import asyncio
import socket

from tests.polling import eventually

PATIENCE_S = 0.5  # of the server
_PAUSE_S = PATIENCE_S / 5
_SLOW_S = 3 * PATIENCE_S  # that it reads slowly, before it reads what is left
_READ_BYTES = 1 << 20


async def read_slowly(address: str, request: bytes, body_bytes: int) -> int:
    """The bytes of the body that came before the connection was cut.

    It runs in the server's event loop, so that a busy machine holds up both alike.
    """
    loop = asyncio.get_running_loop()
    host, _, port = address.rpartition(":")
    with socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 18)
        client.setblocking(False)
        await loop.sock_connect(client, (host, int(port)))
        await loop.sock_sendall(client, request)
        answer = bytearray()
        slow_until = loop.time() + _SLOW_S
        missing = 1
        while missing > 0:
            goal = len(answer) + _READ_BYTES
            while len(answer) < goal and missing > 0:
                try:
                    data = await loop.sock_recv(client, _READ_BYTES)
                except ConnectionResetError:
                    data = b""
                if not data:
                    return body_bytes - missing
                answer += data
                missing = answer.find(b"\r\n\r\n") + 4 + body_bytes - len(answer)
            again = loop.time() + _PAUSE_S
            if loop.time() < slow_until:
                await eventually(lambda again=again: loop.time() >= again)  # type: ignore[misc]
        return body_bytes - missing
