"""Copies between a GPU pool and the arena on a CPU, compared with plain copies, and what they do to the engine's steps."""

import argparse
import mmap
import time
from collections.abc import Callable
from statistics import median

import numpy as np
import numpy.typing as npt
import torch

from benchmarks.report import Figure, Report
from benchmarks.serving import host_hit
from benchmarks.serving.engine import Bench
from benchmarks.timing import in_turn, ratio, seconds
from pbkv_cluster.cache.tiers.transfer import Transfer
from pbkv_cluster.cache.tree.node import new_slots
from pbkv_cluster.core.blocks import BlockLabel, chain_keys
from pbkv_cluster.core.tokens import pack
from pbkv_cluster.core.usage import Tier
from pbkv_cluster.gpu_worker.kv.block_copies import CpuCopies
from pbkv_cluster.gpu_worker.kv.host_region import HostRegion
from pbkv_cluster.gpu_worker.kv.storage import KvShape, KvStorage
from pbkv_cluster.gpu_worker.kv.transfer_engine import ThreadedTransferEngine
from pbkv_cluster.gpu_worker.model import random_model
from pbkv_cluster.store.arena.layout import RegionLayout
from pbkv_cluster.store.arena.slots import ReadResult, SlotReader

SHAPE = KvShape(layers=32, kv_heads=8, head_dim=128, dtype=torch.bfloat16)  # 2 MiB a block
BYTES_PER_S = 1e9
SPACE = b"the benchmark's "


def run(arguments: argparse.Namespace) -> Report:
    quick: bool = arguments.quick
    torch.set_num_threads(1)
    blocks, rounds = (16, 3) if quick else (64, 15)
    figures = [*_copies(blocks, rounds), *_steps(2 if quick else 6)]
    figures += host_hit.figures(random_model.cached("5m" if quick else "24m"), 2 if quick else 9)
    return Report(
        "copies", f"{blocks} blocks of {SHAPE.block_bytes >> 20} MiB at a time; one thread for each direction", tuple(figures)
    )


class Pools:
    """A GPU pool that is host memory, and a region in which every slot holds a block."""

    def __init__(self, blocks: int) -> None:
        layout = RegionLayout(blocks, SHAPE.block_bytes)
        self.memory = memoryview(mmap.mmap(-1, layout.size))
        self.region = HostRegion(layout, SPACE, time.time, self.memory)
        self.storage = KvStorage(SHAPE, blocks, blocks, torch.device("cpu"), self.region.slots.payloads)
        self.slots = new_slots(range(blocks))
        self.labels = []
        for block in range(blocks):
            tokens = pack([block] * 16)
            self.labels.append(BlockLabel(SPACE, SPACE, chain_keys(SPACE, tokens)[0], tokens))
        self.storage.gpu.fill_(1.0)
        _carry_out(self.engine(1.0), self.store())

    def engine(self, verify_share: float) -> ThreadedTransferEngine:
        return ThreadedTransferEngine(CpuCopies(self.storage), self.region, verify_share)

    def store(self) -> Transfer:
        return Transfer(Tier.GPU, self.slots, Tier.HOST, self.slots, labels=self.labels)

    def load(self) -> Transfer:
        return Transfer(Tier.HOST, self.slots, Tier.GPU, self.slots)


def _carry_out(engine: ThreadedTransferEngine, transfer: Transfer) -> None:
    engine.submit(transfer)
    engine.wait((transfer,))
    engine.completed()
    assert not transfer.failed


def _copies(blocks: int, rounds: int) -> list[Figure]:
    pools = Pools(blocks)
    plain, checked = pools.engine(0.0), pools.engine(1.0)
    # Read-only, as a sibling maps it.
    reader = SlotReader(pools.memory.toreadonly(), pools.region.layout)
    gpu: npt.NDArray[np.uint8] = pools.storage.gpu.view(torch.uint8).numpy()
    host: npt.NDArray[np.uint8] = pools.storage.host.view(torch.uint8).numpy()

    def memcpy() -> None:
        for block in range(blocks):
            gpu[block] = host[block]

    def sibling() -> None:
        for block in range(blocks):
            assert reader.read(block, pools.labels[block].key, gpu[block]) is ReadResult.READ

    runs: dict[str, Callable[[], float]] = {
        "memcpy": lambda: seconds(memcpy),
        "load": lambda: seconds(lambda: _carry_out(plain, pools.load())),
        "checked": lambda: seconds(lambda: _carry_out(checked, pools.load())),
        "sibling": lambda: seconds(sibling),
        "store": lambda: seconds(lambda: _carry_out(checked, pools.store())),
    }
    in_turn(2, **runs)  # to warm up
    found = in_turn(rounds, **runs)
    size = blocks * SHAPE.block_bytes
    return [
        Figure("plain copy", size / median(found["memcpy"]) / 1e9, "GB/s"),
        Figure("own block to the GPU pool over a plain copy", ratio(found, "memcpy", "load"), "x", at_least=0.8),
        Figure("the same with its checksum", ratio(found, "memcpy", "checked"), "x", at_least=0.5),
        Figure("a sibling's block, with its checksum", ratio(found, "memcpy", "sibling"), "x", at_least=0.5),
        Figure("block to the arena with its checksum over a plain copy", ratio(found, "memcpy", "store"), "x"),
    ]


def _steps(rounds: int) -> list[Figure]:
    """Decode steps of a batch, alone and while blocks are copied at a steady rate."""
    pools = Pools(64)
    engine = pools.engine(1.0)
    bench = Bench(random_model.cached("24m"))
    copied = [0.0]

    def decode(pump: Callable[[], None]) -> float:
        return bench.decode_steps(256, pump)

    def beside() -> float:
        start, submitted = time.perf_counter(), 0
        open_: list[Transfer] = []

        def pump() -> None:
            nonlocal submitted
            for done in engine.completed():
                open_.remove(done)
            due = int((time.perf_counter() - start) * BYTES_PER_S / SHAPE.block_bytes)
            while submitted < due and len(open_) < 64:
                slot = new_slots([submitted % 64])
                transfer = Transfer(Tier.HOST, slot, Tier.GPU, slot)
                engine.submit(transfer)
                open_.append(transfer)
                submitted += 1

        taken = decode(pump)
        copied[0] = submitted * SHAPE.block_bytes / (time.perf_counter() - start)
        engine.wait(list(open_))
        engine.completed()
        return taken

    runs: dict[str, Callable[[], float]] = {"alone": lambda: decode(lambda: None), "beside": beside}
    in_turn(1, **runs)
    found = in_turn(rounds, **runs)
    return [
        Figure("copies beside decode steps", copied[0] / 1e9, "GB/s"),
        Figure("step time beside them over alone", ratio(found, "beside", "alone"), "x", at_most=1.05),
    ]
