"""Copies of blocks between the GPU pool and host slots, on the transfer engine's threads: the contract, and its CPU twin."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol

import torch

from pbkv_cluster.gpu_worker.kv.layer_events import LayerEvent
from pbkv_cluster.gpu_worker.kv.storage import KvStorage
from pbkv_cluster.store.arena.slots import Bytes


class BlockCopies(Protocol):
    """Copies whole blocks, pairwise, and returns when the bytes are there."""

    batch: int  # blocks that are best copied together
    layers: int  # of a block

    def fence(self) -> Any:
        """Called on the engine's thread: stands for everything that has been computed so far."""
        ...

    def to_host(self, gpu_slots: Sequence[int], host_slots: Sequence[int], fence: Any) -> None:
        """Copies from the GPU, after what `fence` stands for."""
        ...

    def to_gpu(self, host_slots: Sequence[int], gpu_slots: Sequence[int], fence: Any) -> None:
        """Copies to the GPU, after what `fence` stands for."""
        ...

    def layers_to_gpu(self, host_slots: Sequence[int], gpu_slots: Sequence[int], fence: Any) -> Iterator[LayerEvent]:
        """Copies to the GPU, after what `fence` stands for, first layer 0 of all blocks, then layer 1, and so on.

        Yields each layer's event when its copy has been started. The copies are made when the last one has been.
        """
        ...

    def from_memory(self, payloads: Sequence[Bytes], gpu_slots: Sequence[int], fence: Any) -> None:
        """Copies payloads that lie in any memory of this process to the GPU, after what `fence` stands for."""
        ...

    def landing(self) -> "Landing":
        """Memory of its own for one thread that reads blocks of other processes."""
        ...


class Landing(Protocol):
    """Where bytes that are read from elsewhere arrive, before they are in the GPU pool."""

    blocks: int  # that have room at once

    def rows(self, gpu_slots: Sequence[int]) -> Sequence[Bytes]:
        """Memory for blocks on their way to these slots."""
        ...

    def deliver(self, arrived: Mapping[int, int], fence: Any) -> None:
        """Copies to the GPU, after what `fence` stands for: rows by their number, each to a slot. Returns when that is done."""
        ...


class CpuCopies:
    """Both pools are host memory. numpy lets other threads run while it copies."""

    batch = 1  # so that a block is still in the processor's cache when its checksum is computed

    def __init__(self, storage: KvStorage) -> None:
        self.layers = storage.shape.layers
        self._gpu, self._host = _rows(storage.gpu), _rows(storage.host)
        elements = storage.shape.block_elements // self.layers
        self._gpu_layers, self._host_layers = storage.gpu.view(-1, elements), storage.host.view(-1, elements)

    def fence(self) -> None:
        """What has been computed is in memory."""

    def to_host(self, gpu_slots: Sequence[int], host_slots: Sequence[int], fence: None) -> None:
        for source, target in zip(gpu_slots, host_slots, strict=True):
            self._host[target] = self._gpu[source]

    def to_gpu(self, host_slots: Sequence[int], gpu_slots: Sequence[int], fence: None) -> None:
        for source, target in zip(host_slots, gpu_slots, strict=True):
            self._gpu[target] = self._host[source]

    def layers_to_gpu(self, host_slots: Sequence[int], gpu_slots: Sequence[int], fence: None) -> Iterator[LayerEvent]:
        sources, targets = (torch.tensor(slots, dtype=torch.int64) * self.layers for slots in (host_slots, gpu_slots))
        for layer in range(self.layers):  # each in one call, so that no layer waits for Python's lock between its blocks
            self._gpu_layers.index_copy_(0, targets + layer, self._host_layers.index_select(0, sources + layer))
            yield _MADE

    def from_memory(self, payloads: Sequence[Bytes], gpu_slots: Sequence[int], fence: None) -> None:
        for payload, target in zip(payloads, gpu_slots, strict=True):
            self._gpu[target] = payload

    def landing(self) -> "Landing":
        return CpuLanding(self._gpu)


class _Made:
    """A copy that has been made."""

    def wait(self) -> None:
        pass

    def synchronize(self) -> None:
        pass


_MADE = _Made()


class CpuLanding:
    """The pool itself: nobody computes on a slot before its block has arrived."""

    blocks = 16

    def __init__(self, gpu: Bytes) -> None:
        self._gpu = gpu

    def rows(self, gpu_slots: Sequence[int]) -> Sequence[Bytes]:
        return [self._gpu[slot] for slot in gpu_slots]

    def deliver(self, arrived: Mapping[int, int], fence: None) -> None:
        """What has arrived is there."""


def _rows(pool: torch.Tensor) -> Bytes:
    """A pool as bytes, a row for each block."""
    rows: Bytes = pool.view(torch.uint8).numpy()
    return rows
