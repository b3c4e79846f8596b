"""Metrics of a host store, and of who reads the blocks of other nodes, read when they are asked for."""

from dataclasses import dataclass

from pbkv_cluster.core.metrics import names
from pbkv_cluster.core.metrics.figures import Figures
from pbkv_cluster.store.arena.arena import Arena
from pbkv_cluster.store.arena.slots import ReadResult
from pbkv_cluster.store.peers.source import PeerSource
from pbkv_cluster.store.peers.transport import BlockServer


@dataclass(slots=True)
class HostStoreFigures:
    """Reads what the arena of a node holds, and what its server of blocks counts."""

    arena: Arena
    peers: BlockServer | None  # None: blocks are not served to other nodes

    async def put(self, figures: Figures) -> None:
        """Adds them to a scrape."""
        figures.put(names.ARENA_CAPACITY_BYTES, self.arena.capacity)
        figures.put(names.ARENA_TAKEN_BYTES, self.arena.taken_bytes)
        figures.put_each(names.ARENA_REGION_BYTES, self.arena.region_bytes())
        if self.peers is not None:
            counts = self.peers.counts
            for outcome in ("served", "absent"):
                figures.put(names.PEER_SERVED_BLOCKS, counts.get(f"{outcome}_blocks", 0), outcome)
            for reason in ("connections", "requests"):
                figures.put(names.PEER_REFUSALS, counts.get(f"refused_{reason}", 0), reason)


@dataclass(slots=True)
class PeerSourceFigures:
    """Reads what a reader of other nodes' blocks counts."""

    source: PeerSource

    async def put(self, figures: Figures) -> None:
        """Adds them to a scrape."""
        counts = self.source.counts
        for result in ReadResult:
            figures.put(names.PEER_READ_BLOCKS, counts[result.value], result.value)
        figures.put(names.PEER_FAILED_REQUESTS, counts["failed_requests"])
