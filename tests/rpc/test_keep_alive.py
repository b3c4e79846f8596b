"""Keep-alive pings over an idle connection, a hundred times as often as in service: the server bears all of them."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any

import pytest
from grpc import aio
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from pbkv_cluster.rpc.channel import CHANNEL_OPTIONS, keep_alive
from pbkv_cluster.rpc.server import SERVER_OPTIONS
from tests.polling import eventually

INTERVAL_S = 0.1
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
PING, GOAWAY = 6, 7  # types of HTTP/2 frames
ACK = 1


class Tap:
    """Forwards connections and counts the frames that pass, by type."""

    def __init__(self) -> None:
        self.connections = 0
        self.pings = 0  # of the client, not its answers
        self.goodbyes = 0  # of the server

    def client_frame(self, kind: int, flags: int) -> None:
        self.pings += kind == PING and not flags & ACK

    def server_frame(self, kind: int, flags: int) -> None:
        self.goodbyes += kind == GOAWAY


async def forward(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, frame: Callable[[int, int], None], preface: bytes
) -> None:
    with suppress(ConnectionError, asyncio.IncompleteReadError):
        writer.write(await reader.readexactly(len(preface)))
        while True:
            header = await reader.readexactly(9)
            frame(header[3], header[4])
            writer.write(header + await reader.readexactly(int.from_bytes(header[:3])))
            await writer.drain()
    writer.close()


@asynccontextmanager
async def tapped(address: str) -> AsyncIterator[tuple[Tap, str]]:
    tap = Tap()
    host, _, port = address.rpartition(":")

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        tap.connections += 1
        far_reader, far_writer = await asyncio.open_connection(host, int(port))
        await asyncio.gather(
            forward(reader, far_writer, tap.client_frame, PREFACE), forward(far_reader, writer, tap.server_frame, b"")
        )

    server = await asyncio.start_server(connected, "127.0.0.1", 0)
    try:
        yield tap, f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        server.close()


@pytest.mark.parametrize("watches", [False, True], ids=["no call is open", "a stream is open"])
async def test_an_idle_connection_is_kept(watches: bool) -> None:
    options = keep_alive(INTERVAL_S)
    server = aio.server(options=options)
    service = health.aio.HealthServicer()
    await service.set("", health_pb2.HealthCheckResponse.SERVING)
    health_pb2_grpc.add_HealthServicer_to_server(service, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with tapped(f"127.0.0.1:{port}") as (tap, address), aio.insecure_channel(address, options=options) as channel:
        stub: Any = health_pb2_grpc.HealthStub(channel)  # its type has no methods
        request = health_pb2.HealthCheckRequest()
        if watches:
            await anext(aiter(watching := stub.Watch(request)))
        else:
            await stub.Check(request)
        await eventually(lambda: tap.pings >= 6)
        assert (await stub.Check(request)).status == health_pb2.HealthCheckResponse.SERVING
        assert (tap.connections, tap.goodbyes) == (1, 0)
        if watches:
            assert not watching.done()
            watching.cancel()
    await server.stop(0)


def test_both_sides_have_one_policy() -> None:
    policy = set(keep_alive(20.0))
    assert policy <= set(SERVER_OPTIONS)
    assert policy <= set(CHANNEL_OPTIONS)
