"""What carries blocks from one node to another. TCP is the one that is built in; both ends of a cluster use the same."""

import ssl
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from pbkv_cluster.core.errors import Unavailable
from pbkv_cluster.store.arena.slots import Bytes, ReadResult


class LostConnection(Unavailable):
    """The other side has closed the connection. Over a new one, the same may succeed."""


@dataclass(frozen=True, slots=True)
class PeerAddress:
    """How a node's server of blocks is reached."""

    address: str  # host:port
    token: bytes = field(repr=False)  # which proves that both sides are of one cluster
    name: str = ""  # in its certificate; empty: the host of its address


class BlockServer(Protocol):
    """Serves the arena of a node to other nodes."""

    @property
    def counts(self) -> Mapping[str, int]:
        """What it has done so far: served_blocks, absent_blocks, refused_connections, refused_requests; absent: 0."""
        ...

    def start(self, host: str, port: int) -> str:
        """Serves until `stop`; port 0 takes a free one. Returns the address, host:port.

        Raises:
            StartupError: the address cannot be bound.
        """
        ...

    def stop(self) -> None:
        """Ends all connections. Whoever reads from them gets Unavailable."""
        ...


class BlockConnection(Protocol):
    """One connection to another node's server, used by one thread at a time."""

    def fetch(self, region: str, wanted: Sequence[tuple[bytes, int]], targets: Sequence[Bytes]) -> list[ReadResult]:
        """Reads blocks of one region into memory of this process, and compares their checksums.

        Args:
            region: the worker's that wrote them.
            wanted: key and slot of each block.
            targets: where each goes, all of them as long as a payload.

        Raises:
            LostConnection: the other side has closed the connection.
            Unavailable: it does not answer in time, has no room for the request, or answers nonsense.
        """
        ...

    def end(self) -> None:
        """Ends a `fetch` of another thread, which then closes the connection."""
        ...

    def close(self) -> None:
        """Ends and frees the connection, which no other thread uses."""
        ...


class Transport(Protocol):
    """A way for blocks to go from node to node."""

    def serve(self, arena: Path, token: bytes, tls: ssl.SSLContext | None) -> BlockServer:
        """A server for an arena, to be started.

        Args:
            arena: path of the arena, as the host store gives it.
            token: that readers must know.
            tls: certificate and key of this node, and whose certificates readers must show; None: no TLS.
        """
        ...

    def connect(self, peer: PeerAddress, timeout_s: float, tls: ssl.SSLContext | None) -> BlockConnection:
        """A connection to a server.

        Args:
            peer: the server.
            timeout_s: within which it must answer.
            tls: what certificates are trusted, and which is shown; None: no TLS.

        Raises:
            Unavailable: there is no server of this cluster there, or it has no room.
        """
        ...
