"""The HTTP server for metrics and spans, under bad and hostile input."""

import asyncio
import socket
from collections.abc import AsyncIterator, Mapping
from pathlib import Path

import pytest

from pbkv_cluster.core.errors import StartupError, Unavailable
from pbkv_cluster.rpc.http_server import Audience, HttpAnswer, HttpServer, Route, plain
from tests.polling import eventually
from tests.secured import CLUSTER_KEY, OPERATOR, RED, secured
from tests.slow_reader import PATIENCE_S, read_slowly

HOST = "127.0.0.1"


async def echo(headers: Mapping[str, str], body: bytes) -> HttpAnswer:
    return plain(200, f"{headers.get('x', '')} {body.decode()}")


async def away(headers: Mapping[str, str], body: bytes) -> HttpAnswer:
    raise Unavailable("Redis is away")


async def defect(headers: Mapping[str, str], body: bytes) -> HttpAnswer:
    raise ZeroDivisionError


ROUTES = {
    "/get": Route("GET", echo),
    "/post": Route("POST", echo, 1000),
    "/away": Route("GET", away),
    "/bug": Route("GET", defect),
}


@pytest.fixture
async def server() -> AsyncIterator[HttpServer]:
    running = HttpServer(ROUTES, max_connections=8)
    await running.start(HOST, 0)
    yield running
    await running.stop()


async def send(server: HttpServer, request: bytes) -> bytes:
    """Sends bytes on a connection of its own, and reads until it is closed."""
    reader, writer = await asyncio.open_connection(HOST, int(server.address.rpartition(":")[2]))
    try:
        writer.write(request)
        await writer.drain()
        return await asyncio.wait_for(reader.read(), 20)
    except ConnectionResetError:  # it was refused while we were still sending
        return b""
    finally:
        writer.close()


def status(answer: bytes) -> int:
    return int(answer.split(maxsplit=2)[1])


async def test_a_request_is_answered(server: HttpServer) -> None:
    got = await send(server, b"GET /get?a=b HTTP/1.1\r\nHost: x\r\nX: y\r\nConnection: close\r\n\r\n")
    assert status(got) == 200
    assert got.endswith(b"\r\n\r\ny ")
    posted = await send(server, b"POST /post HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\nConnection: close\r\n\r\nhi")
    assert posted.endswith(b" hi")


@pytest.mark.parametrize(
    ("request_", "expected"),
    [
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03 TLS\r\n\r\n", 400),
        (b"GET /get\r\n\r\n", 400),
        (b"GET /get HTTP/1.1\r\n\r\n", 400),  # without a host
        (b"GET /get HTTP/1.1\r\nHost: x\r\nHost: y\r\n\r\n", 400),
        (b"GET /get HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n", 400),
        (b"GET /get HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n", 400),
        (b"GET /get HTTP/1.1\r\nHost: x\r\nBad Header\r\n\r\n", 400),
        (b"GET /get HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", 400),
        (b"GET /get HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: gzip\r\n\r\n", 501),
        (b"GET /" + b"a" * 100_000 + b" HTTP/1.1\r\nHost: x\r\n\r\n", 431),
        (b"GET /get HTTP/1.1\r\nHost: x\r\nX: " + b"a" * 100_000 + b"\r\n\r\n", 431),
        (b"GET /../../etc/passwd HTTP/1.1\r\nHost: x\r\n\r\n", 404),
        (b"GET /get/ HTTP/1.1\r\nHost: x\r\n\r\n", 404),
        (b"GET http://elsewhere/get HTTP/1.1\r\nHost: x\r\n\r\n", 404),
        (b"DELETE /get HTTP/1.1\r\nHost: x\r\n\r\n", 405),
        (b"GET /post HTTP/1.1\r\nHost: x\r\n\r\n", 405),
        (b"HEAD /get HTTP/1.1\r\nHost: x\r\n\r\n", 405),
        (b"GET /get HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\n\r\nx", 413),
        (b"POST /post HTTP/1.1\r\nHost: x\r\nContent-Length: 2000\r\n\r\n" + b"x" * 2000, 413),
        (b"GET /away HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", 503),
        (b"GET /bug HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", 500),
    ],
)
async def test_a_bad_request_gets_an_error_and_disturbs_no_other(server: HttpServer, request_: bytes, expected: int) -> None:
    assert status(await send(server, request_)) == expected
    assert status(await send(server, b"GET /get HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")) == 200


async def test_connections_are_bounded_and_a_silent_one_holds_up_nobody(server: HttpServer) -> None:
    port = int(server.address.rpartition(":")[2])
    silent = [await asyncio.open_connection(HOST, port) for _ in range(8)]
    try:
        refused = await send(server, b"GET /get HTTP/1.1\r\nHost: x\r\n\r\n")
        assert refused == b"" or status(refused) == 503  # empty: the connection was reset before the answer was read
        silent.pop()[1].close()
        request = b"GET /get HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"

        async def served() -> bool:
            return (await send(server, request)).startswith(b"HTTP/1.1 200 ")

        await eventually(served)  # when the server has seen the end of the one that was closed
    finally:
        for _, writer in silent:
            writer.close()


async def test_a_client_that_does_not_read_its_answer_is_cut_off() -> None:
    async def large(headers: Mapping[str, str], body: bytes) -> HttpAnswer:
        return plain(200, "x" * (32 << 20))  # far more than the system's buffers hold

    server = HttpServer({**ROUTES, "/large": Route("GET", large)}, max_connections=1, stalled_s=0.1)
    await server.start(HOST, 0)
    with socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.setblocking(False)
        loop = asyncio.get_running_loop()
        await loop.sock_connect(client, (HOST, int(server.address.rpartition(":")[2])))
        await loop.sock_sendall(client, b"GET /large HTTP/1.1\r\nHost: x\r\n\r\n")

        async def another_is_served() -> bool:
            answer = await send(server, b"GET /get HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
            return answer.startswith(b"HTTP/1.1 200 ")  # and not that the server is full, which may be cut short

        await eventually(another_is_served)
    await server.stop()


async def test_a_slow_but_steady_reader_gets_everything() -> None:
    size = 32 << 20

    async def large(headers: Mapping[str, str], body: bytes) -> HttpAnswer:
        return plain(200, "x" * size)

    server = HttpServer({"/large": Route("GET", large)}, stalled_s=PATIENCE_S)
    await server.start(HOST, 0)
    assert await read_slowly(server.address, b"GET /large HTTP/1.1\r\nHost: x\r\n\r\n", size) == size
    await server.stop()


async def test_a_port_in_use_is_a_clear_error(server: HttpServer) -> None:
    with pytest.raises(StartupError, match="cannot listen"):
        await HttpServer(ROUTES).start(HOST, int(server.address.rpartition(":")[2]))


@pytest.mark.parametrize(
    ("audience", "key", "status"),
    [
        (Audience.EVERYBODY, "", 200),
        (Audience.TENANTS, "", 401),
        (Audience.TENANTS, "x" * 30, 401),
        (Audience.TENANTS, RED, 200),
        (Audience.OPERATORS, RED, 403),
        (Audience.OPERATORS, OPERATOR, 200),
        (Audience.OPERATORS, CLUSTER_KEY, 200),
    ],
)
async def test_a_path_is_for_its_audience(tmp_path: Path, audience: Audience, key: str, status: int) -> None:
    with secured(tmp_path):
        server = HttpServer({"/": Route("GET", echo, audience=audience)})
        await server.start(HOST, 0)
        answer = await send(
            server, f"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\nAuthorization: Bearer {key}\r\n\r\n".encode()
        )
        assert answer.startswith(f"HTTP/1.1 {status} ".encode())
        assert (b"WWW-Authenticate: Bearer" in answer) is (status == 401)
        await server.stop()
