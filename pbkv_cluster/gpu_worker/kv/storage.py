"""The bytes of the KV blocks: the paged GPU pool and the host tier."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch

from pbkv_cluster.core.tokens import BLOCK_TOKENS
from pbkv_cluster.core.usage import Tier


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
        host_memory: for the host tier, writable; by default the process's own.
        """
        self.shape = shape
        self.device = device
        self.gpu = _zeros(gpu_blocks, shape, device)
        if host_memory is None or not host_blocks:
            self.host = _zeros(host_blocks, shape, torch.device("cpu"))
        else:
            elements = host_blocks * shape.block_elements
            self.host = torch.frombuffer(host_memory, dtype=shape.dtype, count=elements).view(host_blocks, -1)
        self.pools: Mapping[Tier, torch.Tensor] = {Tier.GPU: self.gpu, Tier.HOST: self.host}  # [blocks, elements of a block]
        width = shape.kv_heads * shape.head_dim
        self._tokens = self.gpu.view(-1, width)  # a row for the K or V of one token in one layer
        self._halves = self.gpu.view(-1, BLOCK_TOKENS * width)  # a row for the K or V of one block in one layer
        self._gathered = self._halves.new_empty(2, 0, BLOCK_TOKENS * width)

    def token_rows(self, slots: torch.Tensor, offsets: torch.Tensor) -> torch.Tensor:
        """Rows of the K of tokens in layer 0, given their slots and their offsets within the block; for `write`."""
        return slots * (self.shape.layers * 2 * BLOCK_TOKENS) + offsets

    def write(self, layer: int, rows: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> None:
        """Stores the KV of tokens in one layer.

        Args:
            layer: index of the layer.
            rows: from `token_rows`.
            key: [tokens, kv_heads, dim], and `value` likewise.
        """
        first = rows + layer * 2 * BLOCK_TOKENS
        self._tokens.index_copy_(0, first, key.reshape(len(rows), -1))
        self._tokens.index_copy_(0, first + BLOCK_TOKENS, value.reshape(len(rows), -1))

    def read(self, layer: int, slots: torch.Tensor, empty: torch.Tensor | None = None) -> tuple[torch.Tensor, torch.Tensor]:
        """K and V of whole blocks in one layer, each [len(slots) * 16, kv_heads, dim]. The next call overwrites them.

        Args:
            layer: index of the layer.
            slots: of the blocks.
            empty: rows of the result that hold no token; they are set to 0.
        """
        rows = slots * (self.shape.layers * 2) + layer * 2
        room = self._room(len(slots))
        torch.index_select(self._halves, 0, rows, out=room[0])
        torch.index_select(self._halves, 0, rows + 1, out=room[1])
        both = room.view(2, -1, self.shape.kv_heads, self.shape.head_dim)
        if empty is not None:
            both.index_fill_(1, empty, 0.0)
        return both[0], both[1]

    def _room(self, blocks: int) -> torch.Tensor:
        """Buffer for `read`, [2, blocks, elements]. It is kept: fresh memory can cost more in page faults than the copy."""
        if blocks > self._gathered.shape[1]:
            with torch.inference_mode(False):  # so that it can be written to in either mode
                self._gathered = self._halves.new_empty(2, blocks + blocks // 2, self._halves.shape[1])
        return self._gathered[:, :blocks]


def _zeros(blocks: int, shape: KvShape, device: torch.device) -> torch.Tensor:
    """A pool. Memory of the host is taken from the machine as it is used: `torch.zeros` would take all of it now."""
    if device.type != "cpu" or not blocks:
        return torch.zeros(blocks, shape.block_elements, dtype=shape.dtype, device=device)
    pool = torch.from_numpy(np.zeros(blocks * shape.block_bytes, np.uint8))
    return pool.view(shape.dtype).view(blocks, shape.block_elements)
