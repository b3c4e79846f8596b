"""Asks members for their metrics."""

import asyncio
import logging
from collections.abc import Collection
from typing import Any

from pbkv_cluster.core.errors import Unavailable
from pbkv_cluster.core.locations.addresses import parse_address
from pbkv_cluster.dashboard.scraping.metrics_text import Scrape, parse
from pbkv_cluster.rpc.security import this_process
from pbkv_cluster.store.cluster_index import EndpointEntry

log = logging.getLogger(__name__)

_TIMEOUT_S = 5.0  # a worker answers between two batches
_MAX_BYTES = 4 << 20

_Connection = tuple[asyncio.StreamReader, asyncio.StreamWriter]


class Scraper:
    """Keeps its connections from round to round: to open and close one costs more than a question and its answer."""

    def __init__(self) -> None:
        self._idle: dict[str, _Connection] = {}

    async def scrape_all(self, endpoints: Collection[EndpointEntry]) -> dict[str, Scrape]:
        """The metrics of those members that answer, by name."""
        answers = await asyncio.gather(*(self._known(each) for each in endpoints))
        return {each.member: answer for each, answer in zip(endpoints, answers, strict=True) if answer is not None}

    async def scrape(self, address: str) -> Scrape:
        """The metrics of one member.

        Raises:
            Unavailable: it does not answer within some seconds, or with something else than metrics.
        """
        try:
            async with asyncio.timeout(_TIMEOUT_S):
                status, body = await self._get(address)
        except (OSError, EOFError, ValueError, TimeoutError) as error:
            raise Unavailable(f"no metrics from {address}: {error or type(error).__name__}") from error
        if status != b"200":
            raise Unavailable(f"no metrics from {address}: it answers {body[:200].decode(errors='replace') or 'nothing'}")
        try:
            return parse(body.decode())
        except ValueError as error:
            raise Unavailable(f"no metrics from {address}: {error}") from error

    def keep(self, addresses: Collection[str]) -> None:
        """Closes connections to all other addresses."""
        for address in self._idle.keys() - set(addresses):
            self._close(address)

    def close(self) -> None:
        """Closes all connections."""
        for address in list(self._idle):
            self._close(address)

    async def _known(self, endpoint: EndpointEntry) -> Scrape | None:
        try:
            return await self.scrape(endpoint.address)
        except Unavailable as error:
            log.debug("%s: %s", endpoint.member, error)
            return None

    async def _get(self, address: str) -> tuple[bytes, bytes]:
        """Status and body of an answer."""
        if (kept := self._idle.pop(address, None)) is not None:
            try:
                return await self._ask(address, kept)
            except (OSError, EOFError):  # the member has started again, or ended a connection that was idle
                log.debug("another connection to %s", address)
        return await self._ask(address, await _connect(address))

    async def _ask(self, address: str, connection: _Connection) -> tuple[bytes, bytes]:
        reader, writer = connection
        key = this_process().access.api_key
        login = f"Authorization: Bearer {key}\r\n" if key else ""
        try:
            writer.write(f"GET /metrics HTTP/1.1\r\nHost: {address}\r\n{login}\r\n".encode())
            first, *lines = (await reader.readuntil(b"\r\n\r\n")).split(b"\r\n")
            headers = dict(line.lower().split(b": ", 1) for line in lines if line)
            size = int(headers[b"content-length"])
            if size > _MAX_BYTES:
                raise OSError(f"more than {_MAX_BYTES} bytes")
            body = await reader.readexactly(size)
            status = first.split(b" ", 2)[1]
        except BaseException as error:
            writer.close()
            if isinstance(error, KeyError | IndexError):
                raise ValueError("it answers with something else than HTTP/1.1") from error
            raise
        if headers.get(b"connection") == b"close":
            writer.close()
        else:
            self._idle[address] = connection
        return status, body

    def _close(self, address: str) -> None:
        _, writer = self._idle.pop(address)
        writer.close()


async def _connect(address: str) -> _Connection:
    host, port = parse_address("address", address)
    tls = this_process().access.tls
    context: dict[str, Any] = {} if tls is None else {"ssl": tls.client_context(), "server_hostname": tls.name or host}
    return await asyncio.open_connection(host, port, limit=_MAX_BYTES, **context)
