"""Loads from pinned host memory, beside one plain copy of as many bytes."""

from collections.abc import Callable
from functools import partial
from statistics import median

import torch

from benchmarks.gpu.device import Device, Sizes
from benchmarks.gpu.pools import Pools
from benchmarks.report import Figure
from benchmarks.timing import in_turn, ratio
from pbkv_cluster.gpu_worker.kv.block_copies import BlockCopies
from pbkv_cluster.gpu_worker.kv.transfer_engine import ThreadedTransferEngine

WORDS = {
    "kernel": "gather kernel over mapped memory",
    "batch": "batched memcpy",
    "twin": "twin on the CPU",
}


def figures(device: Device, sizes: Sizes, pools: Pools, method: str) -> list[Figure]:
    """One way to copy, by block and by layer, with and without the worker's thread and checksums."""
    size = pools.load_bytes
    source = torch.ones(size, dtype=torch.uint8, pin_memory=device.is_cuda)
    target = torch.empty(size, dtype=torch.uint8, device=device.torch)
    copies = device.copies(pools.storage, method)
    unchecked, checked = pools.engine(copies, 0.0), pools.engine(copies, 1.0)
    copied: dict[str, Callable[[], object]] = {
        "plain": partial(target.copy_, source, non_blocking=True),
        "blocks": partial(_blocks, pools, copies),
        "layers": partial(_layers, pools, copies),
        "worker": partial(load, pools, unchecked),
        "checked": partial(load, pools, checked),
    }
    sound = min(pools.sound_after(run) for name, run in copied.items() if name != "plain")
    runs = {name: partial(device.seconds, each) for name, each in copied.items()}
    in_turn(1, **runs)
    found = in_turn(sizes.rounds, **runs)
    for engine in (unchecked, checked):
        engine.close()
    what = (
        ("blocks", "whole blocks", 0.9),
        ("layers", "by layer", 0.9),
        ("worker", "by layer, by the worker's thread", None),
        ("checked", "by layer, by the worker's thread, all checksums compared", None),
    )
    return [
        Figure("blocks that hold the right bytes afterwards", sound, "", at_least=1.0),
        Figure("plain pinned copy", size / median(found["plain"]) / 1e9, "GB/s"),
        *(
            Figure(f"{words}, over a plain pinned copy", ratio(found, "plain", part), "x", at_least=goal)
            for part, words, goal in what
        ),
    ]


def load(pools: Pools, engine: ThreadedTransferEngine) -> None:
    """Loads all blocks as the worker does for a step."""
    transfer = pools.load(pools.gpu_slots[: len(pools.host_slots)])
    engine.submit(transfer)
    engine.wait((transfer,))
    engine.completed()
    assert not transfer.failed


def _blocks(pools: Pools, copies: BlockCopies) -> None:
    copies.to_gpu(pools.host_slots, pools.gpu_slots[: len(pools.host_slots)], copies.fence())


def _layers(pools: Pools, copies: BlockCopies) -> None:
    *_, last = copies.layers_to_gpu(pools.host_slots, pools.gpu_slots[: len(pools.host_slots)], copies.fence())
    last.synchronize()
