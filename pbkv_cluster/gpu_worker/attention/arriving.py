"""Attention over blocks that are still being loaded, layer by layer."""

from collections.abc import Sequence

import torch

from pbkv_cluster.cache.tiers.transfer import LayerArrival
from pbkv_cluster.gpu_worker.attention.base import PagedBatch


def arriving(batch: PagedBatch, arrivals: Sequence[LayerArrival]) -> PagedBatch:
    """A batch that waits for a layer of some loads before it attends in it."""
    return _ArrivingBatch(batch, arrivals) if arrivals else batch


class _ArrivingBatch:
    def __init__(self, batch: PagedBatch, arrivals: Sequence[LayerArrival]) -> None:
        self._batch = batch
        self._arrivals = arrivals

    def attend(
        self, layer: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float | None, window: int | None
    ) -> torch.Tensor:
        for arrival in self._arrivals:
            arrival.wait(layer)
        return self._batch.attend(layer, query, key, value, scale, window)
