"""The worker's host tier: slots in its region of the arena, or in memory of its own where there is no arena."""

import mmap
from collections.abc import Callable, Iterator

from pbkv_cluster.core.blocks import StoredBlock
from pbkv_cluster.core.errors import ResourceExhausted
from pbkv_cluster.store.arena.layout import RegionLayout
from pbkv_cluster.store.arena.page_touch import PageTouch
from pbkv_cluster.store.arena.slots import RegionSlots


class HostRegion:
    """Slots, and the memory behind them, which is taken from the machine while the worker already serves, or as it is used."""

    def __init__(
        self,
        layout: RegionLayout,
        model: bytes,
        wall: Callable[[], float],
        memory: memoryview | None = None,
        huge_pages: bool = False,
        pin: Callable[[int, int], None] = lambda address, size: None,
    ) -> None:
        """Args:
        layout: of the region; it has at least one slot.
        model: digest of what all namespaces of this worker share.
        wall: seconds since the epoch.
        memory: of the region, at least as long as the layout says; by default the process's own.
        huge_pages: ask for transparent huge pages.
        pin: called with address and size of the memory that has been taken.

        Raises:
            ResourceExhausted: the machine lacks memory even for the headers.
        """
        self._shared = memory is not None
        self._wall = wall
        self.layout = layout
        memory = memory or memoryview(mmap.mmap(-1, layout.size))
        self._touch = PageTouch(memory[: layout.size], huge_pages, pin)
        self._touch.ensure(0, layout.payloads)
        self.slots = RegionSlots(memory, layout, model, wall)

    @property
    def ready_blocks(self) -> int:
        """Slots whose memory has been taken."""
        return min(self.layout.slots, max(0, self._touch.ready_bytes - self.layout.payloads) // self.layout.payload_bytes)

    @property
    def ready_bytes(self) -> int:
        """Memory that has been taken, and pinned where that is done."""
        return self._touch.ready_bytes

    @property
    def problem(self) -> str:
        """Why not all slots can be used; empty: they can."""
        return self._touch.problem

    def start(self) -> None:
        """Takes the memory of an arena's region in the background. Otherwise, it is taken as it is used."""
        if self._shared:
            self._touch.start()

    def stop(self) -> None:
        self._touch.stop()

    def ensure(self, slot: int) -> None:
        """Takes the memory of a slot now.

        Raises:
            ResourceExhausted: the machine does not have it.
        """
        start = self.layout.payloads + slot * self.layout.payload_bytes
        self._touch.ensure(start, start + self.layout.payload_bytes)

    def has_memory(self, slot: int) -> bool:
        """Whether a slot's memory can be used, after it has been taken if need be."""
        try:
            self.ensure(slot)
        except ResourceExhausted:
            return False
        return True

    def stored(self) -> Iterator[StoredBlock]:
        """The blocks that an earlier process of this worker has left. Their bytes are compared when they are loaded."""
        now = self._wall()
        for slot, header in self.slots.headers():
            if header.length == self.layout.payload_bytes:
                yield StoredBlock(slot, header.label, max(0.0, now - header.stored_at))
