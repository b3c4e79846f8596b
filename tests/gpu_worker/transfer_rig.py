"""Pools, a region, and an engine that copies between them, for tests of its threads."""

import mmap
import threading
import time
from collections.abc import Sequence

import torch

from pbkv_cluster.cache.tiers.transfer import Transfer
from pbkv_cluster.cache.tree.node import new_slots
from pbkv_cluster.core.blocks import BlockLabel, Namespace, chain_keys
from pbkv_cluster.core.clock import ManualClock
from pbkv_cluster.core.tokens import pack
from pbkv_cluster.core.usage import Tier
from pbkv_cluster.gpu_worker.kv.block_copies import CpuCopies
from pbkv_cluster.gpu_worker.kv.host_region import HostRegion
from pbkv_cluster.gpu_worker.kv.other_workers import OtherWorkers
from pbkv_cluster.gpu_worker.kv.storage import KvShape, KvStorage
from pbkv_cluster.gpu_worker.kv.transfer_engine import ThreadedTransferEngine
from pbkv_cluster.store.arena.layout import RegionLayout
from pbkv_cluster.store.arena.slots import Bytes, ReadResult
from pbkv_cluster.store.block_map import BlockMap
from pbkv_cluster.store.block_source import BlockPlace

CPU = torch.device("cpu")
SHAPE = KvShape(layers=3, kv_heads=2, head_dim=4, dtype=torch.float32)
GPU_BLOCKS, HOST_BLOCKS = 7, 5
SPACE = Namespace("m", "r", "f", "l").digest()


class Held(CpuCopies):
    """Copies that wait for a signal."""

    def __init__(self, storage: KvStorage) -> None:
        super().__init__(storage)
        self.go = threading.Event()

    def to_host(self, gpu_slots: Sequence[int], host_slots: Sequence[int], fence: None) -> None:
        self.go.wait(30)
        super().to_host(gpu_slots, host_slots, fence)


class NoSource:
    def connect(self, node: str) -> None:
        raise AssertionError("it is not asked")

    def read(self, wanted: Sequence[tuple[bytes, BlockPlace]], targets: Sequence[Bytes]) -> Sequence[ReadResult]:
        raise AssertionError("it is not asked")


class HeldOthers(OtherWorkers):
    """Have every block, or those of some slots, and are reached after a signal."""

    has: Sequence[int] | None = None

    def __init__(self) -> None:
        super().__init__(BlockMap(), "node", "worker", {Tier.REMOTE: NoSource()})
        self.go = threading.Event()
        self.begun = threading.Event()
        self.reads = 0

    def read(self, tier: Tier, keys: Sequence[bytes], targets: Sequence[Bytes]) -> list[bool]:
        self.reads += 1
        self.begun.set()
        begun = time.monotonic()
        self.go.wait(30)
        self.lost_s[tier] += time.monotonic() - begun
        return [self.has is None or key in [label.key for label in labels(self.has)] for key in keys]


class Rig:
    """Pools with numbers that never repeat, and an engine."""

    def __init__(self, verify_share: float = 1.0, held: bool = False, others: OtherWorkers | None = None) -> None:
        self.clock = ManualClock()
        layout = RegionLayout(HOST_BLOCKS, SHAPE.block_bytes)
        self.memory = memoryview(mmap.mmap(-1, layout.size + mmap.PAGESIZE))  # longer, as a region of the arena may be
        self.region = HostRegion(layout, b"digest of a mod.", lambda: 5.0, self.memory)
        self.storage = KvStorage(SHAPE, GPU_BLOCKS, HOST_BLOCKS, CPU, self.region.slots.payloads)
        for number, pool in enumerate((self.storage.gpu, self.storage.host)):
            pool.copy_(torch.arange(pool.numel()).view_as(pool) + number * 1_000_000)
        self.gpu, self.host = self.storage.gpu.clone(), self.storage.host.clone()  # what the pools should hold
        self.copies = Held(self.storage) if held else CpuCopies(self.storage)
        self.engine = ThreadedTransferEngine(self.copies, self.region, verify_share, others=others, now=self.clock.now)

    def submit(self, transfer: Transfer) -> Transfer:
        assert not self.engine.submit(transfer)
        return transfer

    def carry_out(self, transfer: Transfer) -> list[int]:
        """Returns the slots that got no block."""
        self.engine.wait((self.submit(transfer),))
        assert list(self.engine.completed()) == [transfer]
        assert not self.engine.completed(), "reported twice"
        return list(transfer.failed)


def labels(slots: Sequence[int]) -> list[BlockLabel]:
    blocks = [pack([slot] * 16) for slot in slots]
    return [BlockLabel(SPACE, SPACE, chain_keys(SPACE, tokens)[0], tokens) for tokens in blocks]


def store(gpu: Sequence[int], host: Sequence[int], after: Sequence[Transfer] = ()) -> Transfer:
    return Transfer(Tier.GPU, new_slots(gpu), Tier.HOST, new_slots(host), after, labels(gpu))


def fetch(target: Tier, slots: Sequence[int]) -> Transfer:
    return Transfer(Tier.REMOTE, new_slots(), target, new_slots(slots), (), labels(slots), patience_s=30.0)


def load(host: Sequence[int], gpu: Sequence[int], after: Sequence[Transfer] = ()) -> Transfer:
    return Transfer(Tier.HOST, new_slots(host), Tier.GPU, new_slots(gpu), after)
