"""Reads the metrics of a member, in the text format of Prometheus."""

import asyncio
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from pbkv_cluster.core.errors import Unavailable
from pbkv_cluster.core.locations.addresses import parse_address
from pbkv_cluster.rpc.security import this_process

_TIMEOUT_S = 5.0  # a worker answers between two batches
_MAX_BYTES = 4 << 20
_LABEL = re.compile(r'(\w+)="((?:[^"\\]|\\.)*)"')
_ESCAPE = re.compile(r"\\(.)")

Labels = tuple[tuple[str, str], ...]


@dataclass(slots=True)
class Scrape:
    """What a process has counted. Names are those of `core.metrics.names`; histograms have `_bucket`, `_sum` and `_count`."""

    series: dict[str, dict[Labels, float]] = field(default_factory=dict)

    def value(self, name: str, **labels: str) -> float:
        """One series; 0 if there is none."""
        return self.series.get(name, {}).get(tuple(sorted(labels.items())), 0.0)

    def has(self, name: str) -> bool:
        """Whether there is any series of that name."""
        return name in self.series

    def by(self, name: str, label: str) -> dict[str, float]:
        """All series of a metric by the value of its label."""
        return {dict(labels)[label]: value for labels, value in self.series.get(name, {}).items()}

    def total(self, name: str) -> float:
        """The sum over all labels."""
        return sum(self.series.get(name, {}).values())


def parse(text: str) -> Scrape:
    """Takes in samples of our own metrics and of the process; whatever else there is, is skipped."""
    scrape = Scrape()
    for line in text.split("\n"):  # the format has no other end of line
        if not line.startswith(("pbkv_", "process_")):
            continue
        series, _, number = line.rpartition(" ")
        name, _, rest = series.partition("{")
        labels = tuple(sorted(_labels(rest))) if rest else ()
        scrape.series.setdefault(name, {})[labels] = float(number)
    return scrape


def _labels(text: str) -> Iterator[tuple[str, str]]:
    for label, value in _LABEL.findall(text):
        yield label, _ESCAPE.sub(lambda match: "\n" if match[1] == "n" else match[1], value) if "\\" in value else value


async def scrape(address: str) -> Scrape:
    """Asks a member for its metrics.

    Raises:
        Unavailable: it does not answer within some seconds, or with something else than metrics.
    """
    host, port = parse_address("address", address)
    try:
        async with asyncio.timeout(_TIMEOUT_S):
            answer = await _get(host, port, "/metrics")
    except (OSError, asyncio.IncompleteReadError, TimeoutError) as error:
        raise Unavailable(f"no metrics from {address}: {error or type(error).__name__}") from error
    head, _, body = answer.partition(b"\r\n\r\n")
    status = head.split(b" ", 2)[1:2]
    if status != [b"200"]:
        raise Unavailable(f"no metrics from {address}: it answers {body[:200].decode(errors='replace') or 'nothing'}")
    try:
        return parse(body.decode())
    except ValueError as error:
        raise Unavailable(f"no metrics from {address}: {error}") from error


async def _get(host: str, port: int, path: str) -> bytes:
    """The whole answer, which the server ends by closing the connection."""
    access = this_process().access
    tls = access.tls
    context: dict[str, Any] = {} if tls is None else {"ssl": tls.client_context(), "server_hostname": tls.name or host}
    key = f"Authorization: Bearer {access.api_key}\r\n" if access.api_key else ""
    reader, writer = await asyncio.open_connection(host, port, limit=_MAX_BYTES, **context)
    try:
        writer.write(f"GET {path} HTTP/1.1\r\nHost: {host}\r\n{key}Connection: close\r\n\r\n".encode())
        answer = bytearray()
        while data := await reader.read(1 << 16):
            answer += data
            if len(answer) > _MAX_BYTES:
                raise OSError(f"more than {_MAX_BYTES} bytes")
        return bytes(answer)
    finally:
        writer.close()


Scrapes = Mapping[str, Scrape]
"""The answers of one round, by member."""
