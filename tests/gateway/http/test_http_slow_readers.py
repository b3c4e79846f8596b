"""A client that does not read its answer keeps neither its connection nor what works on the answer; one that reads gets all."""

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from pbkv_cluster.core.config import GatewayConfig
from pbkv_cluster.gateway.http.wire import connection
from pbkv_cluster.gateway.http.wire.port import HttpPort
from pbkv_cluster.gateway.http.wire.replies import EventStream
from tests.gateway.rig import until
from tests.slow_reader import PATIENCE_S, read_slowly

LARGE = 32 << 20  # bytes; far more than the system's buffers hold
LONG_S = 3600.0
REQUEST = b"GET / HTTP/1.1\r\nhost: x\r\n\r\n"


@asynccontextmanager
async def unread(app: ASGIApp, request: bytes = REQUEST) -> AsyncIterator[tuple[HttpPort, socket.socket]]:
    """A port whose one client sends a request, and reads nothing."""
    port = HttpPort(app, GatewayConfig())
    host, _, number = (await port.start("127.0.0.1", 0)).rpartition(":")
    with socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.setblocking(False)
        await asyncio.get_running_loop().sock_connect(client, (host, int(number)))
        await asyncio.get_running_loop().sock_sendall(client, request)
        try:
            yield port, client
        finally:
            await port.stop()


def endless(ended: asyncio.Event) -> ASGIApp:
    """A stream without end; `ended` is set when the work on it is."""

    async def events() -> AsyncIterator[bytes]:
        while True:
            yield b"data: " + b"x" * (1 << 16) + b"\n\n"
            await asyncio.sleep(0)

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await EventStream(events(), lambda error: b"", ended.set, {})(scope, receive, send)

    return app


async def whole(scope: Scope, receive: Receive, send: Send) -> None:
    await Response(b"x" * LARGE)(scope, receive, send)


async def test_a_stream_that_nobody_reads_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "STALLED_S", 0.1)
    ended = asyncio.Event()
    async with unread(endless(ended)) as (port, _):
        await until(lambda: ended.is_set() and not port.connections, "the stream has ended, and the connection with it")


async def test_an_answer_that_nobody_reads_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "STALLED_S", 0.1)
    async with unread(whole) as (port, _):
        await until(lambda: port.connections == 1, "the client is connected")
        await until(lambda: not port.connections, "its connection is cut")


@pytest.mark.parametrize("half", [True, False], ids=["half closed", "to be closed"])
async def test_a_connection_is_closed_though_its_rest_is_not_read(monkeypatch: pytest.MonkeyPatch, half: bool) -> None:
    monkeypatch.setattr(connection, "STALLED_S", LONG_S)
    monkeypatch.setattr(connection, "FLUSH_S", 0.1)
    request = REQUEST if half else REQUEST.replace(b"host", b"connection: close\r\nhost")
    async with unread(whole, request) as (port, client):
        await until(lambda: port.connections == 1, "the client is connected")
        if half:
            client.shutdown(socket.SHUT_WR)
        await until(lambda: not port.connections, "its connection is cut")


@pytest.mark.parametrize("close", [True, False], ids=["to be closed", "kept"])
async def test_a_slow_but_steady_reader_gets_everything(monkeypatch: pytest.MonkeyPatch, close: bool) -> None:
    monkeypatch.setattr(connection, "STALLED_S", PATIENCE_S)
    monkeypatch.setattr(connection, "FLUSH_S", PATIENCE_S)
    request = REQUEST.replace(b"host", b"connection: close\r\nhost") if close else REQUEST
    port = HttpPort(whole, GatewayConfig())
    address = await port.start("127.0.0.1", 0)
    try:
        assert await read_slowly(address, request, LARGE) == LARGE
    finally:
        await port.stop()


async def test_a_client_that_closes_its_half_ends_the_work_on_a_stream_that_it_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "STALLED_S", LONG_S)
    monkeypatch.setattr(connection, "FLUSH_S", LONG_S)
    ended = asyncio.Event()
    async with unread(endless(ended)) as (port, client):
        await until(lambda: port.connections == 1, "the client is connected")
        client.shutdown(socket.SHUT_WR)
        await until(ended.is_set, "the stream has ended")
