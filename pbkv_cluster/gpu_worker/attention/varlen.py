"""Attention with torch's variable-length flash kernels, on CUDA."""

from collections.abc import Callable, Sequence
from functools import cache
from inspect import signature
from typing import Any

import torch

from pbkv_cluster.core.tokens import BLOCK_TOKENS, blocks_for
from pbkv_cluster.gpu_worker.attention.base import ATTENTION, Span, token_rows
from pbkv_cluster.gpu_worker.kv.storage import KvStorage


@ATTENTION.register("varlen")
class VarlenBatch:
    """The whole batch in one call for each layer. CUDA with float16 or bfloat16 only."""

    def __init__(self, storage: KvStorage, spans: Sequence[Span], kernel: Callable[..., Any] | None = None) -> None:
        if kernel is None:
            from torch.nn.attention.varlen import varlen_attn

            kernel = varlen_attn
        self._kernel: Callable[..., Any] = kernel
        self._storage = storage
        self._rows = token_rows(storage, spans)
        device = storage.device
        counts = [span.tokens for span in spans]
        lengths = [span.start + span.tokens for span in spans]
        tables = [span.table[: blocks_for(length)] for span, length in zip(spans, lengths, strict=True)]
        self._slots = torch.tensor([slot for table in tables for slot in table], device=device)
        gathered = torch.tensor([len(table) * BLOCK_TOKENS for table in tables], device=device)
        ends = torch.tensor(lengths, device=device)
        # The last block of a sequence has rows after the sequence's end. `_kept` leaves those rows out.
        firsts = gathered.cumsum(0) - gathered
        self._kept = torch.cat([torch.arange(n, device=device) + int(f) for n, f in zip(lengths, firsts, strict=True)])
        self._q_ends = torch.cat([ends.new_zeros(1), torch.tensor(counts, device=device).cumsum(0)]).to(torch.int32)
        self._k_ends = torch.cat([ends.new_zeros(1), ends.cumsum(0)]).to(torch.int32)
        self._max_q, self._max_k = max(counts), max(lengths)

    def attend(
        self, layer: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float | None, window: int | None
    ) -> torch.Tensor:
        self._storage.write(layer, self._rows, key, value)
        k, v = (part.index_select(0, self._kept) for part in self._storage.read(layer, self._slots))
        attended: torch.Tensor = self._kernel(
            query.contiguous(),
            k,
            v,
            self._q_ends,
            self._k_ends,
            self._max_q,
            self._max_k,
            scale=scale,
            window_size=(-1 if window is None else window - 1, 0),
            **({"enable_gqa": True} if query.shape[1] != k.shape[1] and _asks_for_groups(self._kernel) else {}),
        )
        return attended


@cache
def _asks_for_groups(kernel: Callable[..., Any]) -> bool:
    """Whether a kernel must be told that several query heads share a KV head. That of an older torch always takes them."""
    return "enable_gqa" in signature(kernel).parameters
