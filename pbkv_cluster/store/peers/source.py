"""Reads blocks of other nodes, each from the server of its node."""

import ssl
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from pbkv_cluster.core.errors import Unavailable
from pbkv_cluster.core.usage import Tier
from pbkv_cluster.store.arena.slots import Bytes, ReadResult
from pbkv_cluster.store.block_source import BlockPlace
from pbkv_cluster.store.peers.transport import BlockConnection, LostConnection, PeerAddress, Transport
from pbkv_cluster.store.peers.wire import MAX_BLOCKS

REQUEST_BYTES = 64 << 20  # of one request's payloads, so that no reader takes all that a server gives
_IDLE_CONNECTIONS = 4  # kept for each node


@dataclass(slots=True)
class _Node:
    """What is known of one node's server."""

    peer: PeerAddress
    idle: list[BlockConnection] = field(default_factory=list)
    silent_until: float = 0.0
    is_replaced: bool = False  # by another server of the node


class PeerSource:
    """A `BlockSource` for the host memory of other nodes. Safe for threads; each call uses a connection of its own.

    A node that has not answered is left alone for a while, so that a dead one costs one time-out and not one for each load.
    `counts` has the blocks by result, and the requests that have failed.
    """

    def __init__(
        self,
        find: Callable[[str], PeerAddress | None],
        transport: Transport,
        timeout_s: float = 5.0,
        retry_s: float = 2.0,
        tls: ssl.SSLContext | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Args:
        find: the present address of a node's server; None if none is announced.
        transport: of the cluster.
        timeout_s: within which a server must send each block, and all of a request within twice that.
        retry_s: for which a node is left alone after it has not answered.
        tls: what certificates are trusted; None: no TLS.
        clock: seconds that never go back.
        """
        self._find, self._transport = find, transport
        self._timeout_s, self._retry_s, self._tls, self._clock = timeout_s, retry_s, tls, clock
        self._lock = threading.Lock()  # for all that follows
        self._nodes: dict[str, _Node] = {}
        self._in_use: set[BlockConnection] = set()
        self._is_closed = False
        self.counts: Counter[str] = Counter()

    def connect(self, node: str) -> None:
        """See `BlockSource.connect`."""
        known = self._answering(node)
        with self._lock:
            if known.idle:
                return
        try:
            connection = self._transport.connect(known.peer, self._timeout_s, self._tls)
        except Unavailable:
            self._rest(known)
            raise
        if not self._keep(known, connection):
            connection.close()

    def read(self, wanted: Sequence[tuple[bytes, BlockPlace]], targets: Sequence[Bytes]) -> list[ReadResult]:
        """See `BlockSource.read`. What is not in host memory is ABSENT."""
        results = [ReadResult.ABSENT] * len(wanted)
        regions: dict[tuple[str, str, int], list[int]] = {}
        for number, ((_, place), target) in enumerate(zip(wanted, targets, strict=True)):
            if place.tier is Tier.HOST:
                regions.setdefault((place.node, place.region, target.nbytes), []).append(number)
        self._count([ReadResult.ABSENT] * (len(wanted) - sum(map(len, regions.values()))))
        for (node, region, size), numbers in regions.items():
            most = min(MAX_BLOCKS, max(1, REQUEST_BYTES // size))
            for start in range(0, len(numbers), most):
                some = numbers[start : start + most]
                blocks = [(wanted[number][0], wanted[number][1].slot) for number in some]
                found = self._request(node, region, blocks, [targets[number] for number in some])
                self._count(found)  # at once, as a later request may fail
                for number, result in zip(some, found, strict=True):
                    results[number] = result
        return results

    def close(self) -> None:
        """Ends all connections. Reads that are running, and all later ones, raise Unavailable; one that is just connecting does
        within its time limit.
        """
        with self._lock:
            self._is_closed = True
            for connection in self._in_use:
                connection.end()
            idle = [connection for node in self._nodes.values() for connection in node.idle]
            self._nodes.clear()
        for connection in idle:
            connection.close()

    def _count(self, results: Sequence[ReadResult]) -> None:
        with self._lock:
            self.counts.update(result.value for result in results)

    def _request(
        self, name: str, region: str, wanted: Sequence[tuple[bytes, int]], targets: Sequence[Bytes]
    ) -> list[ReadResult]:
        node = self._answering(name)
        try:
            try:
                return self._fetch(node, region, wanted, targets)
            except LostConnection:  # it was idle for long, or the server has been replaced since
                return self._fetch(node, region, wanted, targets, again=True)
        except Unavailable:
            self._rest(node)
            raise

    def _answering(self, name: str) -> _Node:
        """What is known of a node. Raises Unavailable while it is left alone."""
        node = self._node(name)
        if self._clock() < node.silent_until:
            raise Unavailable(f"node {name} has not answered lately")
        return node

    def _rest(self, node: _Node) -> None:
        """Leaves a node alone for a while."""
        with self._lock:
            self.counts["failed_requests"] += 1
            node.silent_until = self._clock() + self._retry_s

    def _keep(self, node: _Node, connection: BlockConnection) -> bool:
        """Keeps a connection for later, if it is of use then. Else the caller has to close it."""
        with self._lock:
            is_kept = not self._is_closed and not node.is_replaced and len(node.idle) < _IDLE_CONNECTIONS
            if is_kept:
                node.idle.append(connection)
        return is_kept

    def _node(self, name: str) -> _Node:
        """What is known of a node; all of it is forgotten when its server changes."""
        peer = self._find(name)
        with self._lock:
            self._check_open()
            known = self._nodes.get(name)
            if known is not None and known.peer != peer:
                del self._nodes[name]
                known.is_replaced = True
                for connection in known.idle:
                    connection.close()
                known = None
            if peer is None:
                raise Unavailable(f"node {name} does not serve blocks")
            if known is None:
                known = self._nodes[name] = _Node(peer)
            return known

    def _fetch(
        self, node: _Node, region: str, wanted: Sequence[tuple[bytes, int]], targets: Sequence[Bytes], again: bool = False
    ) -> list[ReadResult]:
        """A request over one connection, a new one if it is made `again`. The connection is kept only if all went well."""
        with self._lock:
            self._check_open()
            connection = node.idle.pop() if node.idle and not again else None
        if connection is None:
            connection = self._transport.connect(node.peer, self._timeout_s, self._tls)
        with self._lock:
            self._in_use.add(connection)
        is_good = False
        try:
            self._check_open()
            results = connection.fetch(region, wanted, targets)
            is_good = True
            return results
        finally:
            with self._lock:
                self._in_use.remove(connection)
            if not (is_good and self._keep(node, connection)):
                connection.close()

    def _check_open(self) -> None:
        if self._is_closed:
            raise Unavailable("no blocks of other nodes are read any more")
