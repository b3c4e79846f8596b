"""This engine's region of the arena: the only one that it writes to."""

import threading
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from pbkv_cluster.core.blocks import BlockLabel
from pbkv_cluster.core.errors import ResourceExhausted
from pbkv_cluster.core.locations.residency import NOWHERE, Residency
from pbkv_cluster.core.usage import Tier
from pbkv_cluster.integrations.engine_store.eviction import EvictionOrder
from pbkv_cluster.store.arena.layout import RegionLayout
from pbkv_cluster.store.arena.page_touch import PageTouch
from pbkv_cluster.store.arena.slots import Bytes, ReadResult, RegionSlots

_IN_HOST = frozenset({Tier.HOST})

OnChange = Callable[[BlockLabel, Residency], None]


@dataclass(slots=True)
class BlockWrite:
    """A slot that waits for a block's bytes: fill `payload` (uint8, as long as a block), then commit it."""

    region: "OwnRegion"
    label: BlockLabel
    slot: int
    payload: Bytes


@dataclass(slots=True)
class _Held:
    label: BlockLabel
    slot: int
    readers: int = 0  # it stays while it is being read


class OwnRegion:
    """Blocks by key, in slots. Safe for threads."""

    def __init__(self, memory: memoryview, block_bytes: int, model: bytes, on_change: OnChange) -> None:
        """Finds the blocks that an earlier process has left there, if they are of this model and as long.

        Args:
            memory: of the region, writable.
            block_bytes: of each block.
            model: digest of what all its namespaces share.
            on_change: called with each block that comes or goes, from the thread that does it.

        Raises:
            ResourceExhausted: the region has no room for a block, or the machine no memory even for the headers.
        """
        slots = RegionLayout(0, block_bytes).slots_in(len(memory))
        if not slots:
            raise ResourceExhausted(f"a region of {len(memory)} bytes has no room for a block of {block_bytes}")
        self.layout = RegionLayout(slots, block_bytes)
        self._on_change = on_change
        self._touch = PageTouch(memory[: self.layout.size])
        self._touch.ensure(0, self.layout.payloads)
        self._slots = RegionSlots(memory, self.layout, model)
        self._payloads: Bytes = np.frombuffer(self._slots.payloads, np.uint8).reshape(slots, block_bytes)
        self._lock = threading.Lock()  # for all that follows
        self._held: dict[bytes, _Held] = {}
        self._writing: dict[bytes, BlockWrite] = {}
        self._order = EvictionOrder()
        self.evicted = 0
        found = sorted(self._slots.headers(), key=lambda each: each[1].stored_at)
        for slot, header in found:
            if header.length == block_bytes and header.label.key not in self._held:
                self._held[header.label.key] = _Held(header.label, slot)
                self._order.add(header.label.key, header.label.parent)
        taken = {held.slot for held in self._held.values()}
        self._free = [slot for slot in reversed(range(slots)) if slot not in taken]
        self.found = len(self._held)
        self._touch.start()

    def __len__(self) -> int:
        return len(self._held)

    def __contains__(self, key: bytes) -> bool:
        return key in self._held

    @property
    def problem(self) -> str:
        """Why not all of the region can be used; empty: it can."""
        return self._touch.problem

    def residencies(self) -> dict[bytes, Residency]:
        """Where each block lies, for the index."""
        with self._lock:
            return {key: Residency(_IN_HOST, held.slot) for key, held in self._held.items()}

    # --- writing ---

    def begin(self, labels: Sequence[BlockLabel]) -> list[BlockWrite]:
        """Slots for those of the blocks that are not here, evicting others if need be; fewer if all that is left is in use.

        Those that are here count as used. Each write must end by `commit` or `abandon`.
        """
        writes = []
        with self._lock:
            for label in reversed(labels):  # so that the first one is the last that is evicted
                self._order.use(label.key)
            for label in labels:
                if label.key in self._held or label.key in self._writing:
                    continue
                slot = self._slot()
                if slot is None:
                    break
                self._slots.begin(slot)
                write = self._writing[label.key] = BlockWrite(self, label, slot, self._payloads[slot])
                writes.append(write)
        return writes

    def commit(self, writes: Iterable[BlockWrite]) -> None:
        """The payloads have been filled: the blocks can be read from now on."""
        done = list(writes)
        for write in done:
            self._slots.end(write.slot, write.label)
        with self._lock:
            for write in done:
                del self._writing[write.label.key]
                self._held[write.label.key] = _Held(write.label, write.slot)
                self._order.add(write.label.key, write.label.parent)
            for write in reversed(done):
                self._order.use(write.label.key)
        for write in done:
            self._on_change(write.label, Residency(_IN_HOST, write.slot))

    def abandon(self, writes: Iterable[BlockWrite]) -> None:
        """The blocks will not come: their slots are free again. Nothing happens to those that were committed already."""
        with self._lock:
            for write in writes:
                if self._writing.get(write.label.key) is write:
                    self._slots.clear(write.slot)
                    del self._writing[write.label.key]
                    self._free.append(write.slot)

    def clear(self, namespaces: frozenset[bytes] | None = None) -> int:
        """Drops all blocks, or those of some namespaces (digests), but for those that are just being read. Returns how many."""
        with self._lock:
            gone = [
                held
                for held in self._held.values()
                if not held.readers and (namespaces is None or held.label.namespace in namespaces)
            ]
            for held in gone:
                self._drop(held)
        for held in gone:
            self._on_change(held.label, NOWHERE)
        return len(gone)

    # --- reading ---

    def use(self, keys: Sequence[bytes]) -> None:
        """Blocks of one sequence, first to last, have been used."""
        with self._lock:
            for key in reversed(keys):
                self._order.use(key)

    def read(self, key: bytes, deliver: Callable[[Bytes], None]) -> ReadResult:
        """Hands a block's bytes to `deliver` where they lie, once they have been compared with their checksum.

        A damaged block is dropped.
        """
        with self._lock:
            held = self._held.get(key)
            if held is None:
                return ReadResult.ABSENT
            held.readers += 1
        try:
            result = self._slots.verify(held.slot, key)
            if result is ReadResult.READ:
                deliver(self._payloads[held.slot])
        finally:
            with self._lock:
                held.readers -= 1
                is_spoiled = result is not ReadResult.READ and not held.readers and self._held.get(key) is held
                if is_spoiled:
                    self._drop(held)
        if is_spoiled:
            self._on_change(held.label, NOWHERE)
        return result

    def close(self) -> None:
        """No block may be written or read any more."""
        self._touch.stop()

    # --- with the lock ---

    def _slot(self) -> int | None:
        while True:
            slot = self._free.pop() if self._free else self._evict()
            if slot is None:
                return None
            start = self.layout.payloads + slot * self.layout.payload_bytes
            try:
                self._touch.ensure(start, start + self.layout.payload_bytes)
            except ResourceExhausted:  # the slot is given up; `problem` says so
                continue
            return slot

    def _evict(self) -> int | None:
        key = self._order.victim(lambda each: not self._held[each].readers)
        if key is None:
            return None
        held = self._held[key]
        self._drop(held)
        self.evicted += 1
        self._on_change(held.label, NOWHERE)
        return self._free.pop()

    def _drop(self, held: _Held) -> None:
        del self._held[held.label.key]
        self._order.remove(held.label.key)
        self._slots.clear(held.slot)
        self._free.append(held.slot)
