"""Copies of blocks between the host tier and the disk, and from the disk to the GPU, made on the transfer engine's threads."""

import logging
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from pbkv_cluster.cache.tiers.transfer import Transfer
from pbkv_cluster.cache.tree.node import Slots, new_slots
from pbkv_cluster.core.blocks import StoredBlock
from pbkv_cluster.core.usage import Tier
from pbkv_cluster.gpu_worker.kv.block_copies import BlockCopies
from pbkv_cluster.gpu_worker.kv.host_region import HostRegion
from pbkv_cluster.store.arena.slots import Bytes, ReadResult
from pbkv_cluster.store.disk.write_behind import WriteBehind

log = logging.getLogger(__name__)


class DiskCopies:
    """A block keeps the header and the checksum that it got in the host tier; loaded, it is compared with the checksum."""

    def __init__(self, copies: BlockCopies, host: HostRegion, disk: WriteBehind) -> None:
        """Args:
        copies: to the GPU.
        host: the host tier.
        disk: the disk tier.
        """
        self._copies = copies
        self._host = host
        self.disk = disk
        size = disk.disk.layout.payload_bytes
        self._loaded: list[Bytes] = list(np.empty((copies.batch, size), np.uint8))

    def store(self, transfer: Transfer, lost: set[int]) -> Iterator[int]:
        """Copies from the host tier, except for blocks that are `lost` already. Yields the target slots that get no block."""
        slots, unbacked = self._host.slots, new_slots()
        for source, target, label in zip(transfer.source_slots, transfer.target_slots, transfer.labels, strict=True):
            header = None if source in lost else slots.header(source)
            if header is None or header.label.key != label.key:
                self.disk.clear(target)
                yield target
            elif not self.disk.write(target, header, np.frombuffer(slots.payload(source), np.uint8)):
                unbacked.append(target)
                yield target
        transfer.unbacked = unbacked

    def load(
        self, transfer: Transfer, lost: set[int], fence: Any, damaged: Callable[[tuple[Tier, Tier]], None]
    ) -> Iterator[int]:
        """Copies to the GPU, except for blocks that are `lost` or damaged, and for what is left when the transfer is given up.
        Yields the target slots that get no block.

        `damaged` is told of each block that is: from where, and to where.
        """
        targets: list[int] = []
        for source, target in zip(transfer.source_slots, transfer.target_slots, strict=True):
            if transfer.given_up:
                yield target
                continue
            result = None if source in lost else self.disk.read(source, self._loaded[len(targets)])
            if result is ReadResult.DAMAGED:
                damaged((transfer.source, transfer.target))
            if result is not ReadResult.READ:
                self.disk.clear(source)
                yield target
                continue
            targets.append(target)
            if len(targets) == len(self._loaded):
                self._copies.from_memory(self._loaded, targets, fence)
                targets = []
        self._copies.from_memory(self._loaded[: len(targets)], targets, fence)

    def erase(self, slots: Slots) -> None:
        """Empties slots."""
        self.disk.flush()
        for slot in slots:
            self.disk.clear(slot)

    def stored(self, now: float) -> Iterator[StoredBlock]:
        """The blocks that an earlier process of this worker has left. Their bytes are compared when they are loaded.

        Args:
            now: seconds since the epoch.
        """
        try:
            for slot, header in self.disk.disk.headers():
                yield StoredBlock(slot, header.label, max(0.0, now - header.stored_at))
        except OSError as error:
            self.disk.problem = f"the blocks on disk cannot be found again: {error.strerror} ({self.disk.disk.path})"
            log.warning("%s", self.disk.problem)
