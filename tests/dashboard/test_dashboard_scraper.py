"""How the dashboard asks members for their metrics: over connections that it keeps, and that may end at any time."""

import asyncio
from collections.abc import Mapping

import pytest

from pbkv_cluster.core.errors import Unavailable
from pbkv_cluster.dashboard.scraping.scraper import Scraper
from pbkv_cluster.rpc.http_server import HttpAnswer, HttpServer, Route
from pbkv_cluster.store.cluster_index import EndpointEntry

HOST = "127.0.0.1"


async def answer(headers: Mapping[str, str], body: bytes) -> HttpAnswer:
    return HttpAnswer(200, "text/plain", b'pbkv_steps_total{outcome="finished"} 7\n')


async def serving(port: int = 0, status: int = 200) -> tuple[HttpServer, str]:
    async def refuse(headers: Mapping[str, str], body: bytes) -> HttpAnswer:
        return HttpAnswer(status, "text/plain", b"not now")

    server = HttpServer({"/metrics": Route("GET", answer if status == 200 else refuse)})
    return server, await server.start(HOST, port)


class Counted:
    """A server that passes connections on, and counts them."""

    def __init__(self, target: str) -> None:
        self._port = int(target.rpartition(":")[2])
        self.connections = 0

    async def start(self) -> str:
        self._server = await asyncio.start_server(self._pass_on, HOST)
        return f"{HOST}:{self._server.sockets[0].getsockname()[1]}"

    def stop(self) -> None:
        self._server.close()

    async def _pass_on(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        other_reader, other_writer = await asyncio.open_connection(HOST, self._port)
        await asyncio.gather(_pump(reader, other_writer), _pump(other_reader, writer))


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(1 << 16):
        writer.write(data)
    writer.close()


async def test_a_connection_is_kept_and_closed_when_the_member_has_gone() -> None:
    server, address = await serving()
    between, scraper = Counted(address), Scraper()
    entry = EndpointEntry("worker-0", "worker", "node", await between.start())
    for _ in range(3):
        found = await scraper.scrape_all([entry])
        assert found["worker-0"].value("pbkv_steps_total", outcome="finished") == 7
    assert between.connections == 1
    scraper.keep([])
    await scraper.scrape_all([entry])
    assert between.connections == 2
    scraper.close()
    between.stop()
    await server.stop()


async def test_a_member_that_has_started_again_is_asked_over_another_connection() -> None:
    server, address = await serving()
    scraper = Scraper()
    await scraper.scrape(address)
    await server.stop()
    with pytest.raises(Unavailable, match="no metrics from"):
        await scraper.scrape(address)
    server, _ = await serving(int(address.rpartition(":")[2]))
    await scraper.scrape(address)
    scraper.close()
    await server.stop()


async def test_whatever_is_no_answer_of_metrics_is_told_as_that() -> None:
    server, address = await serving(status=503)
    scraper = Scraper()
    with pytest.raises(Unavailable, match="it answers not now"):
        await scraper.scrape(address)
    await server.stop()

    async def talk_otherwise(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"220 mail.example ESMTP\r\n\r\n")
        await reader.read()
        writer.close()

    other = await asyncio.start_server(talk_otherwise, HOST)
    with pytest.raises(Unavailable, match="something else than HTTP"):
        await scraper.scrape(f"{HOST}:{other.sockets[0].getsockname()[1]}")
    other.close()
    scraper.close()
