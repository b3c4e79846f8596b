"""Serves the blocks of a node's arena over TCP, without a lock and without a call to their owners."""

import errno
import logging
import socket
import ssl
import threading
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from pbkv_cluster.core.errors import StartupError
from pbkv_cluster.core.locations.addresses import join_address
from pbkv_cluster.store.arena.arena_view import ArenaView
from pbkv_cluster.store.arena.slots import SlotReader
from pbkv_cluster.store.peers import handshake
from pbkv_cluster.store.peers.stream import Stream
from pbkv_cluster.store.peers.wire import BUSY, EMPTY_HEADER, GENERATION, OK, REQUEST, STATUS, Malformed, Request, RequestSize

log = logging.getLogger(__name__)

_RETRY_S = 0.1  # after the system has refused a connection


@dataclass(frozen=True, slots=True)
class Limits:
    """What a server gives to its readers, all together. What is beyond is refused at once, and never waits."""

    connections: int = 128  # each has one request at a time, and a thread
    bytes: int = 1 << 30  # of payloads, of all answers that are being sent
    idle_s: float = 300.0  # after which a connection without a request is closed
    timeout_s: float = 10.0  # within which a reader must have taken a block


class PeerServer:
    """Threads: one that accepts connections, and one for each of these. Payloads go from the mapped arena to the socket.

    `counts` says how many blocks were served and absent, and how many connections and requests were refused.
    """

    def __init__(
        self,
        arena: Path,
        token: bytes,
        tls: ssl.SSLContext | None = None,
        limits: Limits = Limits(),  # immutable
    ) -> None:
        """Args:
        arena: path of the arena, as the host store gives it.
        token: that readers must know.
        tls: certificate and key; None: no TLS.
        limits: of what is served at once.

        Raises:
            FailedPrecondition: the file is no arena, or its layout has another version.
        """
        self._view = ArenaView(arena)
        self._token, self._tls, self._limits = token, tls, limits
        self._lock = threading.Lock()  # for all that follows
        self._connections: dict[Stream, threading.Thread] = {}
        self._bytes = 0  # of payloads in answers that are being sent
        self.counts: Counter[str] = Counter()
        self._listening: socket.socket | None = None
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._accept, name="peers", daemon=True)

    @property
    def connections(self) -> int:
        """Connections that are open."""
        return len(self._connections)

    @property
    def bytes_in_flight(self) -> int:
        """Of the payloads in the answers that are being sent."""
        return self._bytes

    def start(self, host: str, port: int = 0) -> str:
        """See `BlockServer.start`."""
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        try:
            self._listening = socket.create_server((host, port), family=family)
        except (OSError, OverflowError) as error:
            raise StartupError(f"host_store.peer_port: cannot listen on {join_address(host, port)}: {error}") from error
        self._thread.start()
        return join_address(host, self._listening.getsockname()[1])

    def stop(self) -> None:
        """See `BlockServer.stop`."""
        if self._stopping.is_set():
            return
        self._stopping.set()
        if self._listening is not None:
            self._listening.shutdown(socket.SHUT_RDWR)  # ends the wait for a connection
            self._thread.join()
            self._listening.close()
        with self._lock:
            connections = dict(self._connections)
        for stream, thread in connections.items():
            stream.end()
            thread.join()
        self._view.close()

    def _accept(self) -> None:
        assert self._listening is not None
        while not self._stopping.is_set():
            try:
                accepted, address = self._listening.accept()
            except OSError as error:
                if not self._stopping.is_set() and error.errno != errno.ECONNABORTED:
                    log.warning("no connection of a reader of blocks can be accepted: %s", error)
                    self._stopping.wait(_RETRY_S)
                continue
            name = join_address(*address[:2])
            stream = Stream(accepted, self._limits.timeout_s)
            thread = threading.Thread(target=self._serve, args=(stream, name), name=f"peers-{name}", daemon=True)
            with self._lock:
                has_room = len(self._connections) < self._limits.connections
                if has_room:
                    self._connections[stream] = thread
            if not has_room:
                self._refuse(stream, name, f"there are {self._limits.connections} connections")
                continue
            try:
                thread.start()
            except RuntimeError as error:  # the system gives no more threads
                with self._lock:
                    del self._connections[stream]
                self._refuse(stream, name, str(error))

    def _refuse(self, stream: Stream, name: str, reason: str) -> None:
        self._count("refused_connections")
        log.warning("a reader of blocks, %s, is refused: %s", name, reason)
        try:
            if self._tls is None:  # with TLS it would have to be waited for
                handshake.refuse(stream)
        except OSError as error:
            log.debug("%s is gone already: %s", name, error)
        stream.close()

    def _serve(self, stream: Stream, name: str) -> None:
        try:
            if self._tls is not None:
                stream.wrap(self._tls, server_side=True)
            handshake.accept(stream, self._token)
            while not self._stopping.is_set():
                self._answer(stream, RequestSize.unpack(stream.receive(REQUEST.size, self._limits.idle_s)))
        except Malformed as error:
            self._count("refused_connections")
            log.warning("the connection of a reader of blocks, %s, is closed: %s", name, error)
        except OSError as error:  # TLS errors and time-outs are, too
            log.debug("the connection of %s has ended: %s", name, error)
        finally:
            stream.close()
            with self._lock:
                del self._connections[stream]

    def _answer(self, stream: Stream, size: RequestSize) -> None:
        request = Request.unpack(size, stream.receive(size.rest_bytes))
        with self._lock:
            # A request that is larger than all of it is served while there is no other.
            is_busy = 0 < self._bytes > self._limits.bytes - size.answer_bytes
            if not is_busy:
                region = self._view.region(request.region)
                self._bytes += size.answer_bytes
        if is_busy:
            self._count("refused_requests")
            stream.send(STATUS.pack(BUSY))
            return
        try:
            self._send(stream, request, region)
        finally:
            with self._lock:
                self._bytes -= size.answer_bytes

    def _send(self, stream: Stream, request: Request, region: SlotReader | None) -> None:
        if region is None or region.layout.payload_bytes != request.payload_bytes:
            headers: list[bytes | None] = [None] * len(request.wanted)
        else:
            headers = [region.packed_header(slot, key) for key, slot in request.wanted]
        stream.send(STATUS.pack(OK) + b"".join(header or EMPTY_HEADER for header in headers))
        after = []
        for (_, slot), header in zip(request.wanted, headers, strict=True):
            if region is not None and header is not None:
                stream.send(region.payload(slot))
                after.append(GENERATION.pack(region.generation(slot)))
            else:
                after.append(GENERATION.pack(0))
        absent = headers.count(None)
        with self._lock:
            self.counts["served_blocks"] += len(headers) - absent
            self.counts["absent_blocks"] += absent
        stream.send(b"".join(after))

    def _count(self, reason: str) -> None:
        with self._lock:
            self.counts[reason] += 1
