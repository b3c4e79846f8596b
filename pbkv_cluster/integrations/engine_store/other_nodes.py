"""Blocks of other nodes: who has which, from the index in Redis, and their bytes, from the nodes' host stores.

Engines are no workers of a cluster: no step goes to them. So those whose blocks are of one kind have an index of their own, of
the name `CLUSTER.engines.KIND`, in the same Redis; where the nodes' host stores are, the cluster's own directory says.
"""

import logging
import os
import time
import uuid
from collections.abc import Callable, Mapping, Sequence

from pbkv_cluster.core.blocks import BlockLabel, Namespace
from pbkv_cluster.core.clock import SystemClock
from pbkv_cluster.core.errors import Unavailable
from pbkv_cluster.core.locations.residency import SHARED, Residency
from pbkv_cluster.core.usage import Tier
from pbkv_cluster.rpc.security import this_process
from pbkv_cluster.store.arena.slots import Bytes, ReadResult
from pbkv_cluster.store.block_map import BlockMap
from pbkv_cluster.store.block_source import BlockPlace
from pbkv_cluster.store.cluster_index import BlockIndex, Directory, IndexMirror, IndexPublisher, WorkerEntry, connect
from pbkv_cluster.store.peers.addresses import PeerAddresses
from pbkv_cluster.store.peers.source import PeerSource
from pbkv_cluster.store.peers.tcp import TcpTransport

log = logging.getLogger(__name__)

LEASE_S = 10.0  # of an engine's entries, as of all members
NODE_PREFIX = "store:"  # of the ids of nodes that engines' own stores announce
_FLUSH_S = 0.05
_REST_S = 5.0  # for which a node that did not answer is left alone
Blocks = Callable[[], Mapping[bytes, Residency]]


class OtherNodes:
    """Belongs to one event loop, but for `find` and `read`, which any thread may call."""

    def __init__(self, redis_url: str, cluster: str, kind: Namespace, node_id: str) -> None:
        """Args:
        redis_url: of the cluster.
        cluster: its name.
        kind: what the blocks of all engines that share them have in common.
        node_id: of this node, as its host store announces it.
        """
        self._kind = kind
        self._node_id = node_id
        name = f"{cluster}.engines.{kind.digest().hex()}"
        self._redis = connect(redis_url, name)
        self._cluster = connect(redis_url, cluster)  # in cluster mode, the keys of another name may be on another server
        self._engines = Directory(self._redis, name, LEASE_S)
        self._index = BlockIndex(self._redis, name, LEASE_S)
        self._blocks = BlockMap(SHARED)
        self._mirror = IndexMirror(self._index, self._engines, SystemClock(), self._blocks)
        tls = this_process().access.tls
        self._addresses = PeerAddresses(Directory(self._cluster, cluster, LEASE_S), tls.name if tls else "")
        self._source = PeerSource(self._addresses.find, TcpTransport(), tls=tls.client_context() if tls else None)
        self._publisher: IndexPublisher | None = None
        self._rests_until: dict[str, float] = {}  # nodes that have not answered

    def start(self) -> None:
        """Follows the index from now on."""
        self._mirror.start()
        self._addresses.start()

    async def publish(
        self, owner: str, address: str, blocks: Callable[[], Mapping[bytes, Residency]], block_bytes: int
    ) -> None:
        """Announces the blocks of this engine's region, until `stop`.

        Args:
            owner: of the region.
            address: of the node's host store, which answers for the engine.
            blocks: returns all that the region holds.
            block_bytes: of each.
        """
        entry = WorkerEntry(
            worker_id=owner,
            incarnation=uuid.uuid4().hex,
            node_id=self._node_id,
            address=address,
            pid=os.getpid(),
            namespace=self._kind,
            vocab_size=1,  # of no meaning here
            max_context_tokens=1,
            gpu_blocks=0,
            host_blocks=0,
            block_bytes=block_bytes,
        )
        publisher = IndexPublisher(self._engines, self._index, entry, blocks, flush_interval_s=_FLUSH_S)
        self._publisher = publisher  # sooner: what changes while it starts must be recorded
        await publisher.start()

    def record(self, label: BlockLabel, residency: Residency) -> None:
        """A block of this engine's region has come or gone. Any thread may tell."""
        if self._publisher is not None:
            self._publisher.record(label.key, residency)

    def find(self, key: bytes) -> bool:
        """Whether the host memory of another node has a block, as far as is known."""
        return self._place(key) is not None

    def read(self, keys: Sequence[bytes], targets: Sequence[Bytes]) -> list[ReadResult | None]:
        """Copies blocks; see `BlockSource.read`. None: the block's node does not answer, and is left alone for a while.

        A block that is not where it was said to be is forgotten until it is told again.
        """
        results: list[ReadResult | None] = [ReadResult.ABSENT] * len(keys)
        by_node: dict[str, dict[int, BlockPlace]] = {}
        for number, key in enumerate(keys):
            place = self._place(key)
            if place is not None:
                by_node.setdefault(place.node, {})[number] = place
        for node, places in by_node.items():
            wanted = [(keys[number], place) for number, place in places.items()]
            found: Sequence[ReadResult | None]
            try:
                found = self._source.read(wanted, [targets[number] for number in places])
            except Unavailable as error:
                log.warning("blocks of node %s cannot be read, it is left alone for %.0f s: %s", node, _REST_S, error)
                self._rests_until[node] = time.monotonic() + _REST_S
                found = [None] * len(places)
            for (number, place), result in zip(places.items(), found, strict=True):
                results[number] = result
                if result not in (ReadResult.READ, None):
                    self._blocks.forget(keys[number], place)
        return results

    async def stop(self) -> None:
        """Withdraws this engine from the index."""
        if self._publisher is not None:
            await self._publisher.stop()
        await self._mirror.stop()
        await self._addresses.stop()
        self._source.close()
        await self._redis.aclose()
        await self._cluster.aclose()

    def _place(self, key: bytes) -> BlockPlace | None:
        return next((place for place in self._blocks.places(key) if self._is_readable(place)), None)

    def _is_readable(self, place: BlockPlace) -> bool:
        if place.node == self._node_id or place.tier is not Tier.HOST or self._addresses.find(place.node) is None:
            return False
        return self._rests_until.get(place.node, 0.0) <= time.monotonic()
