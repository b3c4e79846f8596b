"""The host store's metrics, read when they are asked for."""

from dataclasses import dataclass

from pbkv_cluster.core.metrics import names
from pbkv_cluster.core.metrics.figures import Figures
from pbkv_cluster.store.arena.arena import Arena


@dataclass(slots=True)
class HostStoreFigures:
    """Reads what the arena of a node holds."""

    arena: Arena

    async def put(self, figures: Figures) -> None:
        """Adds them to a scrape."""
        figures.put(names.ARENA_CAPACITY_BYTES, self.arena.capacity)
        figures.put(names.ARENA_TAKEN_BYTES, self.arena.taken_bytes)
        figures.put_each(names.ARENA_REGION_BYTES, self.arena.region_bytes())
