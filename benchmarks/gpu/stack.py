"""The layers of a Llama with random weights: what a model computes between two layers of KV, without a checkpoint."""

from collections.abc import Sequence

import torch
from torch.nn.functional import rms_norm, silu

from benchmarks.gpu.device import Device, Sizes
from pbkv_cluster.cache.tiers.transfer import LayerArrival
from pbkv_cluster.gpu_worker.attention import Span, choose
from pbkv_cluster.gpu_worker.attention.arriving import arriving
from pbkv_cluster.gpu_worker.kv.storage import KvStorage


class Stack:
    """Attention and MLP of each layer; no embeddings, positions or head."""

    def __init__(self, device: Device, sizes: Sizes, storage: KvStorage) -> None:
        """Args:
        device: of the weights.
        sizes: of the layers.
        storage: that holds their KV.
        """
        shape = sizes.shape
        self._storage = storage
        self._attention = choose("auto", device.torch, shape.dtype)
        self._heads, self._kv_heads, self._dim = sizes.heads, shape.kv_heads, shape.head_dim
        hidden = sizes.heads * shape.head_dim

        def weight(inputs: int, outputs: int) -> torch.Tensor:
            return torch.empty(outputs, inputs, dtype=shape.dtype, device=device.torch).normal_(std=inputs**-0.5)

        self._layers = [
            (
                weight(hidden, (sizes.heads + 2 * shape.kv_heads) * shape.head_dim),
                weight(hidden, hidden),
                weight(hidden, 2 * sizes.inner),
                weight(sizes.inner, hidden),
            )
            for _ in range(shape.layers)
        ]
        self.parameters = sum(part.numel() for layer in self._layers for part in layer)
        most = max(sizes.tokens + sizes.new_tokens, sizes.sequences)
        self._input = torch.empty(most, hidden, dtype=shape.dtype, device=device.torch).normal_()

    @torch.inference_mode()
    def run(self, spans: Sequence[Span], arrivals: Sequence[LayerArrival] = ()) -> torch.Tensor:
        """One pass over a batch, whose layers wait for those of `arrivals`. Returns the hidden states."""
        batch = arriving(self._attention(self._storage, spans), arrivals)
        x = self._input[: sum(span.tokens for span in spans)]
        width = (x.shape[-1],)
        for layer, (qkv, out, up, down) in enumerate(self._layers):
            parts = (rms_norm(x, width) @ qkv.T).view(len(x), -1, self._dim)
            q, k, v = torch.split(parts, [self._heads, self._kv_heads, self._kv_heads], dim=1)
            x = x + batch.attend(layer, q, k, v, None, None).reshape(len(x), -1) @ out.T
            gate, value = (rms_norm(x, width) @ up.T).chunk(2, dim=-1)
            x = x + (silu(gate) * value) @ down.T
        return x
