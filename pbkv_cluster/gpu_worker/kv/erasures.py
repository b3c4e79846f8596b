"""Empties slots, at once or when the transfers that use them have ended."""

import logging
from collections.abc import Sequence

from pbkv_cluster.cache.tiers.transfer import Transfer
from pbkv_cluster.cache.tree.node import NO_SLOTS, Slots, new_slots
from pbkv_cluster.core.usage import Tier
from pbkv_cluster.gpu_worker.kv.disk_copies import DiskCopies
from pbkv_cluster.gpu_worker.kv.host_region import HostRegion

log = logging.getLogger(__name__)


def used(transfer: Transfer, tier: Tier) -> Slots:
    """The slots of a tier that a transfer reads or writes."""
    if transfer.target is tier:
        return transfer.target_slots
    return transfer.source_slots if transfer.source is tier else NO_SLOTS


class Erasures:
    """Of the slots of host memory and of the disk. Called by the engine's thread alone."""

    def __init__(self, region: HostRegion, disk: DiskCopies | None) -> None:
        """Args:
        region: the host tier.
        disk: the disk tier; None: there is none.
        """
        self._region = region
        self._disk = disk
        self._due: dict[tuple[Tier, int], set[Transfer]] = {}  # by slot: late transfers that use it

    def erase(self, tier: Tier, slots: Slots, late: Sequence[Transfer]) -> None:
        """Empties slots of a tier; those that `late` transfers use, as soon as each has been reported by `ended`."""
        users: dict[int, set[Transfer]] = {}
        for transfer in late:
            for slot in used(transfer, tier):
                users.setdefault(slot, set()).add(transfer)
        later = [slot for slot in slots if slot in users]
        self._due |= {(tier, slot): users[slot] for slot in later}
        if later:
            log.warning("%d blocks of the %s tier are cleared once late copies have ended", len(later), tier.value)
        self._empty(tier, new_slots(slot for slot in slots if slot not in users))

    def ended(self, transfer: Transfer) -> None:
        """A transfer has ended, and none has been given its slots yet."""
        for tier in (transfer.source, transfer.target) if self._due else ():
            for slot in used(transfer, tier):
                users = self._due.get((tier, slot), set())
                users.discard(transfer)
                if not users and self._due.pop((tier, slot), None) is not None:
                    self._empty(tier, new_slots((slot,)))

    def _empty(self, tier: Tier, slots: Slots) -> None:
        if tier is Tier.DISK:
            if self._disk is not None:
                self._disk.erase(slots)
            return
        for slot in slots:
            self._region.slots.clear(slot)
