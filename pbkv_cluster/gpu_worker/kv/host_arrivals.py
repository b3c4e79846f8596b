"""Blocks that come to the host tier from the disk and from other workers, on the transfer engine's threads."""

from collections.abc import Callable, Iterator
from itertools import islice

import numpy as np

from pbkv_cluster.cache.tiers.transfer import Transfer
from pbkv_cluster.cache.tree.node import new_slots
from pbkv_cluster.core.blocks import BlockLabel
from pbkv_cluster.core.usage import Tier
from pbkv_cluster.gpu_worker.kv.disk_copies import DiskCopies
from pbkv_cluster.gpu_worker.kv.host_region import HostRegion
from pbkv_cluster.gpu_worker.kv.other_workers import OtherWorkers
from pbkv_cluster.store.arena.slots import ReadResult

BATCH = 16  # blocks that are asked for together


class HostArrivals:
    """Writes them straight into their slots, each of which is invalid until its block is there and its checksum was right."""

    def __init__(
        self,
        region: HostRegion,
        disk: DiskCopies | None,
        others: OtherWorkers | None,
        damaged: Callable[[tuple[Tier, Tier]], None],
    ) -> None:
        """Args:
        region: the host tier.
        disk: the disk tier; None: there is none.
        others: the workers of other nodes; None: they are not read.
        damaged: told of each block on disk that is, from where and to where it was copied.
        """
        self._region = region
        self._disk = disk
        self._others = others
        self._damaged = damaged

    def bring(self, transfer: Transfer, lost: set[int]) -> Iterator[int]:
        """Carries out a transfer to the host tier, but for `lost` sources and, when it is given up, for what is left of it.

        Yields the target slots that get no block.
        """
        slots, unbacked = self._region.slots, new_slots()
        sources = transfer.source_slots or transfer.target_slots  # what is fetched has none
        pending = zip(sources, transfer.target_slots, transfer.labels, strict=True)
        while batch := list(islice(pending, BATCH)):
            for _, target, _ in batch:
                slots.begin(target)
            backed = [entry for entry in batch if self._region.has_memory(entry[1])]
            unbacked.extend(entry[1] for entry in batch if entry not in backed)
            arrived = set() if transfer.given_up else self._read(transfer, backed, lost)
            for _, target, label in batch:
                if target in arrived:
                    slots.end(target, label)
                else:
                    slots.clear(target)
                    yield target
        transfer.unbacked = unbacked

    def _read(self, transfer: Transfer, wanted: list[tuple[int, int, BlockLabel]], lost: set[int]) -> set[int]:
        """Reads blocks into their slots. Returns the slots whose blocks can be believed."""
        rows = [np.frombuffer(self._region.slots.payload(target), np.uint8) for _, target, _ in wanted]
        if transfer.source is not Tier.DISK:
            assert self._others is not None
            read = self._others.read(transfer.source, [label.key for _, _, label in wanted], rows)
            return {target for (_, target, _), arrived in zip(wanted, read, strict=True) if arrived}
        assert self._disk is not None
        arrived = set[int]()
        for (source, target, _), row in zip(wanted, rows, strict=True):
            if transfer.given_up:
                break
            result = ReadResult.ABSENT if source in lost else self._disk.disk.read(source, row)
            if result is ReadResult.READ:
                arrived.add(target)
                continue
            if result is ReadResult.DAMAGED:
                self._damaged((transfer.source, transfer.target))
            self._disk.disk.clear(source)
        return arrived
