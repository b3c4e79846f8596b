"""What there is to say of the memory that blocks lie in."""

from dataclasses import dataclass

from pbkv_cluster.core.usage import Tier
from pbkv_cluster.gpu_worker.kv.host_region import HostRegion
from pbkv_cluster.store.disk.disk_slots import DiskSlots


@dataclass(frozen=True, slots=True)
class PoolMemory:
    """The memory of a worker's tiers."""

    block_bytes: int
    host: HostRegion | None  # None: there is no host tier
    disk: DiskSlots | None = None  # None: there is no disk tier
    pins: bool = False  # the host tier's memory is pinned as it is taken

    def ready_blocks(self, tier: Tier, capacity: int) -> int:
        """Slots of a tier whose memory has been taken from the machine. All of the GPU tier's count as such, on a CPU too."""
        return self.host.ready_blocks if tier is Tier.HOST and self.host is not None else capacity

    @property
    def pinned_bytes(self) -> int:
        """Host memory that copies to and from a GPU need not pin first."""
        return self.host.ready_bytes if self.pins and self.host is not None else 0
