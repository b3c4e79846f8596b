"""The bytes of the KV blocks: the paged GPU pool and the host tier, and copies between them."""

from collections.abc import Sequence
from dataclasses import dataclass
from time import perf_counter

import numpy as np
import torch

from pbkv_cluster.cache.tree.node import Level
from pbkv_cluster.core.tokens import BLOCK_TOKENS


@dataclass(frozen=True, slots=True)
class KvShape:
    """What one token's KV looks like."""

    layers: int
    kv_heads: int
    head_dim: int
    dtype: torch.dtype

    @property
    def block_elements(self) -> int:
        return self.layers * 2 * BLOCK_TOKENS * self.kv_heads * self.head_dim

    @property
    def block_bytes(self) -> int:
        return self.block_elements * self.dtype.itemsize

    def layout(self) -> str:
        """Names the order of a block's elements; part of every block key."""
        return f"layers{self.layers}.kv2.tokens{BLOCK_TOKENS}.heads{self.kv_heads}.dim{self.head_dim}"


class KvStorage:
    """Pools as tensors of [blocks, layers, 2, 16 tokens, heads, dim]: a block is one run of memory, so it moves in one copy."""

    def __init__(
        self,
        shape: KvShape,
        gpu_blocks: int,
        host_blocks: int,
        device: torch.device,
        host_memory: memoryview | None = None,
    ) -> None:
        """Args:
        shape: of one token's KV.
        gpu_blocks: size of the GPU pool.
        host_blocks: size of the host tier.
        device: where the GPU pool is.
        host_memory: of the host tier, writable; by default the process's own.
        """
        self.shape = shape
        self.device = device
        self.gpu = torch.zeros(gpu_blocks, shape.block_elements, dtype=shape.dtype, device=device)
        if host_memory is None:
            self.host = torch.zeros(host_blocks, shape.block_elements, dtype=shape.dtype)
        else:
            elements = host_blocks * shape.block_elements
            self.host = torch.frombuffer(host_memory, dtype=shape.dtype, count=elements).view(host_blocks, -1)
        width = shape.kv_heads * shape.head_dim
        self._tokens = self.gpu.view(-1, width)  # a row for the K or V of one token in one layer
        self._halves = self.gpu.view(-1, BLOCK_TOKENS * width)  # a row for the K or V of one block in one layer
        self._gathered = self._halves.new_empty(2, 0, BLOCK_TOKENS * width)

    def token_rows(self, slots: torch.Tensor, offsets: torch.Tensor) -> torch.Tensor:
        """Where layer 0 keeps the K of tokens, given their slots and their offsets within the block; for `write`."""
        return slots * (self.shape.layers * 2 * BLOCK_TOKENS) + offsets

    def write(self, layer: int, rows: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> None:
        """Stores the KV of tokens.

        Args:
            layer: of the model.
            rows: from `token_rows`.
            key: [tokens, kv_heads, dim], and `value` likewise.
        """
        first = rows + layer * 2 * BLOCK_TOKENS
        self._tokens.index_copy_(0, first, key.reshape(len(rows), -1))
        self._tokens.index_copy_(0, first + BLOCK_TOKENS, value.reshape(len(rows), -1))

    def read(self, layer: int, slots: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """K and V of whole blocks, each [len(slots) * 16, kv_heads, dim]. They are overwritten by the next call."""
        rows = slots * (self.shape.layers * 2) + layer * 2
        key, value = self._room(len(slots))
        torch.index_select(self._halves, 0, rows, out=key)
        torch.index_select(self._halves, 0, rows + 1, out=value)
        kv_heads, dim = self.shape.kv_heads, self.shape.head_dim
        return key.view(-1, kv_heads, dim), value.view(-1, kv_heads, dim)

    def _room(self, blocks: int) -> torch.Tensor:
        """Where `read` puts blocks, [2, blocks, elements]. Kept: fresh memory can cost more in page faults than the copy."""
        if blocks > self._gathered.shape[1]:
            with torch.inference_mode(False):  # so that it can be written to in either mode
                self._gathered = self._halves.new_empty(2, blocks + blocks // 2, self._halves.shape[1])
        return self._gathered[:, :blocks]


class TorchMover:
    """Copies between the tensors of a `KvStorage`, and remembers how long that took."""

    def __init__(self, storage: KvStorage) -> None:
        self._pools = {Level.GPU: storage.gpu, Level.HOST: storage.host}
        self._block_seconds: dict[tuple[Level, Level], float] = {}

    def copy(self, source: Level, source_slots: Sequence[int], target: Level, target_slots: Sequence[int]) -> None:
        if not source_slots:
            return
        start = perf_counter()
        origin, destination = self._pools[source], self._pools[target]
        picked = origin.index_select(0, _indices(source_slots, origin.device))
        # To ordinary memory this waits for the copy, so the bytes are there when it returns.
        destination.index_copy_(0, _indices(target_slots, destination.device), picked.to(destination.device))
        if destination.is_cuda:
            torch.cuda.synchronize(destination.device)
        taken = (perf_counter() - start) / len(source_slots)
        known = self._block_seconds.get((source, target), taken)
        self._block_seconds[source, target] = 0.8 * known + 0.2 * taken

    def seconds(self, source: Level, target: Level, blocks: int) -> float:
        return self._block_seconds.get((source, target), 0.0) * blocks


def _indices(slots: Sequence[int], device: torch.device) -> torch.Tensor:
    return torch.from_numpy(np.array(slots, dtype=np.int64)).to(device)
