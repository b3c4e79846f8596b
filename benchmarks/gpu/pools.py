"""A GPU pool and a host tier whose slots all hold blocks."""

import time
from collections.abc import Callable

import torch

from benchmarks.gpu.device import Device
from pbkv_cluster.cache.tiers.transfer import Transfer
from pbkv_cluster.cache.tree.node import Slots, new_slots
from pbkv_cluster.core.blocks import BlockLabel, chain_keys
from pbkv_cluster.core.tokens import pack
from pbkv_cluster.core.usage import Tier
from pbkv_cluster.gpu_worker.kv.block_copies import BlockCopies
from pbkv_cluster.gpu_worker.kv.cuda_copies import pin_for
from pbkv_cluster.gpu_worker.kv.host_region import HostRegion
from pbkv_cluster.gpu_worker.kv.storage import KvShape, KvStorage
from pbkv_cluster.gpu_worker.kv.transfer_engine import ThreadedTransferEngine
from pbkv_cluster.store.arena.layout import RegionLayout

_MODEL = b"the benchmark's "


class Pools:
    """Random KV in both pools, and slots in the order of nothing."""

    def __init__(self, device: Device, shape: KvShape, gpu_blocks: int, host_blocks: int) -> None:
        """Args:
        device: of the GPU pool.
        shape: of the KV.
        gpu_blocks: at least as many as `host_blocks`.
        host_blocks: of the host tier.
        """
        self.device = device
        self.region = HostRegion(RegionLayout(host_blocks, shape.block_bytes), _MODEL, time.time, pin=pin_for(device.torch))
        for slot in range(host_blocks):
            self.region.ensure(slot)
        self.storage = KvStorage(shape, gpu_blocks, host_blocks, device.torch, self.region.slots.payloads)
        self.storage.gpu.normal_()
        self.host_slots = new_slots(torch.randperm(host_blocks).tolist())
        self.gpu_slots = new_slots(torch.randperm(gpu_blocks).tolist())
        engine = self.engine(device.copies(self.storage, device.methods[0]), 1.0)
        stored = Transfer(Tier.GPU, self.gpu_slots[:host_blocks], Tier.HOST, self.host_slots, labels=_labels(host_blocks))
        engine.submit(stored)
        engine.wait((stored,))
        engine.close()
        assert not stored.failed

    def sound_after(self, run: Callable[[], object]) -> float:
        """The share of the host tier's blocks whose bytes are in the first GPU slots when a load of all of them has run."""
        targets = torch.tensor(self.gpu_slots[: len(self.host_slots)], device=self.device.torch)
        self.storage.gpu.index_fill_(0, targets, 0.0)
        self.device.synchronize()
        run()
        self.device.synchronize()
        arrived = self.storage.gpu.index_select(0, targets).cpu()
        return (arrived == self.storage.host[torch.tensor(self.host_slots)]).all(1).double().mean().item()

    @property
    def load_bytes(self) -> int:
        """Of all blocks of the host tier."""
        return len(self.host_slots) * self.storage.shape.block_bytes

    def engine(self, copies: BlockCopies, verify_share: float) -> ThreadedTransferEngine:
        """A transfer engine between the pools, which must be closed."""
        return ThreadedTransferEngine(copies, self.region, verify_share)

    def load(self, targets: Slots, urgent: bool = True) -> Transfer:
        """The first blocks of the host tier, as many as `targets`, to these slots."""
        return Transfer(Tier.HOST, self.host_slots[: len(targets)], Tier.GPU, targets, urgent=urgent)


def _labels(blocks: int) -> list[BlockLabel]:
    tokens = [pack([block] * 16) for block in range(blocks)]
    return [BlockLabel(_MODEL, _MODEL, chain_keys(_MODEL, each)[0], each) for each in tokens]
