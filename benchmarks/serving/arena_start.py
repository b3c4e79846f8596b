"""How soon a large arena can be used: leased, mapped, its slots laid out, and a first block stored and read.

Only what is used is taken from the machine, which may have less memory than the arena; the rest would be taken, and on a GPU's
host pinned, in the background, at what rate the last figure tells.
"""

import argparse
import mmap
import os
import time
import uuid
from statistics import median
from time import perf_counter

import numpy as np

from benchmarks.report import Figure, Report
from pbkv_cluster.core.blocks import BlockLabel, chain_keys
from pbkv_cluster.core.clock import SystemClock
from pbkv_cluster.core.tokens import pack
from pbkv_cluster.gpu_worker.kv.host_region import HostRegion
from pbkv_cluster.store.arena.arena import Arena
from pbkv_cluster.store.arena.layout import RegionLayout
from pbkv_cluster.store.arena.slots import ReadResult

SIZE, BLOCK = 64 << 30, 2 << 20  # bytes
_TOUCHED = 1 << 30  # bytes, to see how fast memory is taken
_TABLE = 1 << 20  # bytes for the table of regions
_MODEL = b"the benchmark's "


def run(arguments: argparse.Namespace) -> Report:
    """Of some arenas, made one after the other."""
    rounds = 2 if arguments.quick else 7
    usable, rates = zip(*(_one() for _ in range(rounds)), strict=True)
    figures = (
        Figure(
            f"arena of {SIZE >> 30} GiB until a block of {BLOCK >> 20} MiB is stored and read", median(usable), "s", at_most=2
        ),
        Figure("memory taken in the background after that", median(rates) / 1e9, "GB/s"),
    )
    return Report("arena", f"medians of {rounds} arenas; only what is used is taken from the machine", figures)


def _one() -> tuple[float, float]:
    start = perf_counter()
    layout = RegionLayout(RegionLayout(0, BLOCK).slots_in(SIZE), BLOCK)
    arena = Arena(uuid.uuid4().hex, SIZE + _TABLE, 60.0, SystemClock(), available=lambda: 2 * SIZE)
    try:
        region = arena.acquire("benchmark", layout.size)
        file = os.open(arena.path, os.O_RDWR)
        with mmap.mmap(file, region.size, offset=region.offset) as mapped:
            os.close(file)
            memory = memoryview(mapped)
            host = HostRegion(layout, _MODEL, time.time, memory)
            tokens = pack([1] * 16)
            (key,) = chain_keys(_MODEL, tokens)
            host.ensure(0)
            host.slots.write(0, BlockLabel(_MODEL, _MODEL, key, tokens), np.zeros(BLOCK, np.uint8))
            assert host.slots.read(0, key, np.empty(BLOCK, np.uint8)) is ReadResult.READ
            usable = perf_counter() - start
            before, begun = host.ready_bytes, perf_counter()
            host.start()
            while host.ready_bytes < before + _TOUCHED and not host.problem:
                time.sleep(0.01)
            rate = (host.ready_bytes - before) / (perf_counter() - begun)
            host.stop()
            del host, memory
            return usable, rate
    finally:
        arena.close()
