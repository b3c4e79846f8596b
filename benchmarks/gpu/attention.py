"""The varlen back end beside attention that is computed token by token in float32."""

import math
from collections.abc import Callable
from typing import Any

import torch

from benchmarks.gpu.device import Device
from benchmarks.report import Figure
from pbkv_cluster.core.tokens import blocks_for
from pbkv_cluster.gpu_worker.attention import Span
from pbkv_cluster.gpu_worker.attention.varlen import VarlenBatch
from pbkv_cluster.gpu_worker.kv.storage import KvShape, KvStorage

_LAYERS, _DIM, _DTYPE = 2, 128, torch.bfloat16
# Tokens of a sequence that are in the pool, and that are in the batch.
_SPANS = ((0, 1), (0, 37), (5, 1), (16, 16), (133, 24), (300, 1), (215, 41))
_SAME = 1e-2  # greatest difference over greatest value that bfloat16 explains


def figures(device: Device) -> list[Figure]:
    """The greatest difference, with and without a sliding window."""
    kernel = None if device.is_cuda else token_by_token  # torch has the kernel for CUDA only
    return [
        Figure(
            f"varlen attention, {words}: greatest difference from the reference", difference(device, window, kernel), "", _SAME
        )
        for window, words in ((None, "all tokens"), (100, "a window of 100"))
    ]


def token_by_token(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    cu_seq_q: torch.Tensor,
    cu_seq_k: torch.Tensor,
    max_q: int,
    max_k: int,
    *,
    scale: float | None = None,
    window_size: tuple[int, int] = (-1, -1),
) -> torch.Tensor:
    """What `torch.nn.attention.varlen.varlen_attn` computes; queries are aligned with the last keys of their sequence."""
    group = query.shape[1] // key.shape[1]
    q, k, v = query.float(), key.float().repeat_interleave(group, 1), value.float().repeat_interleave(group, 1)
    out = torch.empty_like(q)
    for n in range(len(cu_seq_q) - 1):
        first, stop = int(cu_seq_q[n]), int(cu_seq_q[n + 1])
        keys = slice(int(cu_seq_k[n]), int(cu_seq_k[n + 1]))
        length = keys.stop - keys.start
        for row in range(first, stop):
            at = length - (stop - row)
            start = 0 if window_size[0] < 0 else max(0, at - window_size[0])
            seen = slice(keys.start + start, keys.start + at + 1)
            scores = (k[seen] * q[row]).sum(-1) * (scale or 1 / math.sqrt(query.shape[2]))
            out[row] = (scores.softmax(0).unsqueeze(-1) * v[seen]).sum(0)
    return out.to(query.dtype)


def difference(device: Device, window: int | None, kernel: Callable[..., Any] | None) -> float:
    """The greatest difference between what the back end computes and the reference, over the greatest value.

    Args:
        device: that computes.
        window: tokens that a token attends to; None: all before it.
        kernel: of the back end; None: torch's.
    """
    heads, kv_heads = (32, 8) if device.is_cuda else (2, 1)
    lengths = [start + tokens for start, tokens in _SPANS]
    blocks = [blocks_for(length) for length in lengths]
    storage = KvStorage(KvShape(_LAYERS, kv_heads, _DIM, _DTYPE), sum(blocks), 0, device.torch)
    storage.gpu.fill_(math.nan)  # what is left in slots must not matter
    slots = torch.randperm(sum(blocks)).tolist()
    ends = torch.tensor(blocks).cumsum(0).tolist()
    tables = [slots[end - count : end] for end, count in zip(ends, blocks, strict=True)]

    def random(count: int, heads: int) -> torch.Tensor:
        return torch.randn(count, heads, _DIM, device=device.torch).to(_DTYPE)

    key, value = ([random(length, kv_heads) for length in lengths] for _ in range(2))
    query = [random(tokens, heads) for _, tokens in _SPANS]
    worst = 0.0
    past = [(n, Span(0, start, tables[n])) for n, (start, _) in enumerate(_SPANS) if start]
    now = [Span(start, tokens, tables[n]) for n, (start, tokens) in enumerate(_SPANS)]
    for layer in range(_LAYERS):
        before = VarlenBatch(storage, [span for _, span in past], kernel)
        k, v = (torch.cat([of[n][: span.tokens] for n, span in past]) for of in (key, value))
        before.attend(layer, random(len(k), heads), k, v, None, window)
        batch = VarlenBatch(storage, now, kernel)
        k, v = (torch.cat([of[n][start:] for n, (start, _) in enumerate(_SPANS)]) for of in (key, value))
        got = batch.attend(layer, torch.cat(query), k, v, None, window).float()
        edges_q = torch.tensor([0, *(tokens for _, tokens in _SPANS)]).cumsum(0)
        edges_k = torch.tensor([0, *lengths]).cumsum(0)
        left = -1 if window is None else window - 1
        expected = token_by_token(
            torch.cat(query).float(), torch.cat(key), torch.cat(value), edges_q, edges_k, 0, 0, window_size=(left, 0)
        )
        found = float((got - expected).abs().max() / expected.abs().max())
        worst = max(worst, found if math.isfinite(found) else math.inf)
    return worst
