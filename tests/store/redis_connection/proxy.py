"""A TCP proxy in front of a Redis server: it can speak TLS, which the server that tests bring does not, be slow, lose an
answer, and change servers."""

import asyncio
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from tests.polling import eventually
from tests.store.redis_connection.servers import HOST, Server

_PART_BYTES = 1 << 16


class Proxy:
    """Passes on what arrives at `port`. Belongs to one event loop."""

    def __init__(self, target: Server) -> None:
        self.port = 0
        self.delay_s = 0.0  # between the arrival of a part of an answer and its passing on
        self.loses_answer_to = b""  # to the next request that contains this
        self.closes = False  # when an answer is lost, the connection is, too
        self._target = target
        self._connections: set[asyncio.StreamWriter] = set()

    def switch(self, target: Server) -> None:
        """What connects from now on comes to another server. What is connected is closed, as by a server that has ended."""
        self._target = target
        self._end()

    async def close(self) -> None:
        self._end()
        await eventually(lambda: not self._connections)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection."""
        self._connections.add(writer)
        try:
            inner_reader, inner_writer = await asyncio.open_connection(HOST, self._target.port)
            loses = asyncio.Event()
            await asyncio.gather(self._ask(reader, inner_writer, loses), self._answer(inner_reader, writer, loses))
        except OSError:  # the server has gone
            writer.transport.abort()
        finally:
            self._connections.remove(writer)

    async def _ask(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, loses: asyncio.Event) -> None:
        async for data in _parts(reader, writer):
            if self.loses_answer_to and self.loses_answer_to in data:
                self.loses_answer_to = b""
                loses.set()
            writer.write(data)

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, loses: asyncio.Event) -> None:
        async for data in _parts(reader, writer):
            if self.delay_s:
                await self._delayed()
            if loses.is_set():
                loses.clear()
                if self.closes:
                    writer.transport.abort()
            else:
                writer.write(data)

    async def _delayed(self) -> None:
        over = asyncio.get_running_loop().create_future()
        asyncio.get_running_loop().call_later(self.delay_s, over.set_result, None)
        await over

    def _end(self) -> None:
        for connection in self._connections:
            connection.transport.abort()


async def _parts(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> AsyncIterator[bytes]:
    """What arrives, for a writer that is waited for, and closed at the end."""
    try:
        while data := await reader.read(_PART_BYTES):
            yield data
            await writer.drain()
    except OSError:  # the other side has gone
        pass
    finally:
        writer.close()


@asynccontextmanager
async def proxy_of(server: Server, context: ssl.SSLContext | None = None, port: int = 0) -> AsyncIterator[Proxy]:
    """A proxy in front of a server; with `context`, connections to it are over TLS. Port 0 is any free one."""
    proxy = Proxy(server)
    listening = await asyncio.start_server(proxy.serve, HOST, port, ssl=context)
    proxy.port = listening.sockets[0].getsockname()[1]
    try:
        yield proxy
    finally:
        listening.close()
        await proxy.close()
