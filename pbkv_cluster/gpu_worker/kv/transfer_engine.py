"""Carries transfers out with torch, one after the other."""

from collections.abc import Iterable, Sequence
from time import perf_counter

import numpy as np
import torch

from pbkv_cluster.cache.tiers.transfer import Transfer
from pbkv_cluster.cache.tree.node import Slots
from pbkv_cluster.core.ewma import Ewma
from pbkv_cluster.core.usage import Tier
from pbkv_cluster.gpu_worker.kv.storage import KvStorage

_WEIGHT = 0.2  # of the latest measurement


class TorchTransferEngine:
    """Copies between the tensors of a `KvStorage`, and measures how long that takes.

    `submit` returns when the copy is done: on a CPU because torch works that way; on CUDA the copy is queued after the kernels
    of earlier batches, on their stream, and waited for.
    """

    def __init__(self, storage: KvStorage) -> None:
        self._pools = storage.pools
        self._block_seconds: dict[tuple[Tier, Tier], Ewma] = {}

    def submit(self, transfer: Transfer) -> bool:
        """See `TransferEngine.submit`."""
        start = perf_counter()
        source, target = self._pools[transfer.source], self._pools[transfer.target]
        blocks = source.index_select(0, _indices(transfer.source_slots, source.device))
        # `to` a CPU in ordinary memory waits for the copy.
        target.index_copy_(0, _indices(transfer.target_slots, target.device), blocks.to(target.device))
        if target.is_cuda:
            torch.cuda.synchronize(target.device)
        self._measure(transfer, perf_counter() - start)
        return True

    def completed(self) -> Sequence[Transfer]:
        """See `TransferEngine.completed`."""
        return ()

    def wait(self, transfers: Iterable[Transfer]) -> None:
        """See `TransferEngine.wait`."""

    def seconds(self, source: Tier, target: Tier, blocks: int) -> float:
        """See `TransferEngine.seconds`. 0 before the first transfer that way."""
        measured = self._block_seconds.get((source, target))
        return 0.0 if measured is None else measured.value * blocks

    def _measure(self, transfer: Transfer, seconds: float) -> None:
        way = transfer.source, transfer.target
        self._block_seconds.setdefault(way, Ewma(_WEIGHT, initial=0.0)).add(seconds / len(transfer))


def _indices(slots: Slots, device: torch.device) -> torch.Tensor:
    return torch.from_numpy(np.array(slots, dtype=np.int64)).to(device)
