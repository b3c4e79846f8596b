"""Blocks over TCP: the transport that is built in, and the reader's end of a connection."""

import socket
import ssl
import time
from collections.abc import Sequence
from pathlib import Path

from xxhash import xxh3_64_intdigest as checksum

from pbkv_cluster.core.errors import Unavailable
from pbkv_cluster.core.locations.addresses import parse_address
from pbkv_cluster.store.arena.layout import GENERATION_BYTES, SLOT_BYTES, SlotHeader
from pbkv_cluster.store.arena.slots import Bytes, ReadResult
from pbkv_cluster.store.peers import handshake
from pbkv_cluster.store.peers.server import PeerServer
from pbkv_cluster.store.peers.stream import Stream
from pbkv_cluster.store.peers.transport import LostConnection, PeerAddress
from pbkv_cluster.store.peers.wire import BUSY, EMPTY_HEADER, GENERATION, OK, STATUS, Request

_REQUEST_TIMES = 2  # as long as a block may take, a whole request may: who sends each block just in time is of no use


class TcpTransport:
    """See `Transport`."""

    def serve(self, arena: Path, token: bytes, tls: ssl.SSLContext | None = None) -> PeerServer:
        """See `Transport.serve`."""
        return PeerServer(arena, token, tls)

    def connect(self, peer: PeerAddress, timeout_s: float, tls: ssl.SSLContext | None = None) -> "TcpConnection":
        """See `Transport.connect`."""
        return TcpConnection(peer, timeout_s, tls)


class TcpConnection:
    """See `BlockConnection`. Payloads go from the socket to their targets, and are compared while the next one arrives."""

    def __init__(self, peer: PeerAddress, timeout_s: float, tls: ssl.SSLContext | None = None) -> None:
        """See `Transport.connect`."""
        self._peer = peer.address
        host, port = parse_address("peer_address", peer.address)
        try:
            stream = Stream(socket.create_connection((host, port), timeout_s), timeout_s)
        except OSError as error:
            raise Unavailable(f"no blocks can be read from {peer.address}: {error}") from error
        try:
            if tls is not None:
                stream.wrap(tls, server_hostname=peer.name or host)
            handshake.greet(stream, peer.token)
        except (OSError, Unavailable) as error:
            stream.close()
            raise Unavailable(f"no blocks can be read from {peer.address}: {error}") from error
        self._stream = stream

    def fetch(self, region: str, wanted: Sequence[tuple[bytes, int]], targets: Sequence[Bytes]) -> list[ReadResult]:
        """See `BlockConnection.fetch`."""
        try:
            self._stream.send(Request(region, targets[0].nbytes, wanted).pack())
            (status,) = STATUS.unpack(self._stream.receive(STATUS.size))
            if status == OK:
                return self._receive(wanted, targets)
        except TimeoutError as error:
            raise Unavailable(f"{self._peer} does not send blocks within {self._stream.timeout_s:g} s") from error
        except OSError as error:
            raise LostConnection(f"the connection to {self._peer}, which serves blocks, is lost: {error}") from error
        if status == BUSY:
            raise Unavailable(f"{self._peer} serves as many blocks as it can")
        raise Unavailable(f"{self._peer} answers what is no answer")

    def end(self) -> None:
        """See `BlockConnection.end`."""
        self._stream.end()

    def close(self) -> None:
        """See `BlockConnection.close`."""
        self._stream.close()

    def _receive(self, wanted: Sequence[tuple[bytes, int]], targets: Sequence[Bytes]) -> list[ReadResult]:
        packed = self._stream.receive(len(wanted) * SLOT_BYTES)
        headers = [packed[start : start + SLOT_BYTES] for start in range(0, len(packed), SLOT_BYTES)]
        results = []
        ends_at = time.monotonic() + _REQUEST_TIMES * self._stream.timeout_s
        for (key, _), header, target in zip(wanted, headers, targets, strict=True):
            if header == EMPTY_HEADER:
                results.append(ReadResult.ABSENT)
                continue
            self._stream.receive_into(target.data, min(self._stream.timeout_s, ends_at - time.monotonic()))
            results.append(ReadResult.READ if _is_block(header, key, target) else ReadResult.DAMAGED)
        after = self._stream.receive(len(wanted) * GENERATION_BYTES)
        for number, (generation,) in enumerate(GENERATION.iter_unpack(after)):
            # Only where the checksum is wrong: a block that was overwritten after its last byte had been sent is a good one.
            if results[number] is ReadResult.DAMAGED and headers[number][:GENERATION_BYTES] != GENERATION.pack(generation):
                results[number] = ReadResult.OVERWRITTEN
        return results


def _is_block(packed: bytes, key: bytes, payload: Bytes) -> bool:
    """Whether a slot's header is that of a block, and these are the block's bytes."""
    header = SlotHeader.unpack(packed[GENERATION_BYTES:])
    return (
        header is not None
        and header.label.key == key
        and header.length == payload.nbytes
        and checksum(payload.data) == header.payload_sum
    )
