"""Attention with torch's scaled dot product attention, on any device."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch.nn.functional import scaled_dot_product_attention

from pbkv_cluster.core.tokens import BLOCK_TOKENS, blocks_for
from pbkv_cluster.gpu_worker.attention.base import ATTENTION, Span, to_device, token_rows
from pbkv_cluster.gpu_worker.kv.storage import KvStorage

# Bytes of K and V that one call on a CPU reads: first to gather them from the pool, then to attend. The second time they come
# from the processor's cache, if they fit.
_CPU_GROUP_BYTES = 4 << 20


class _Prefill(NamedTuple):
    """One sequence with several tokens in the batch."""

    first: int  # row of its first token in the batch
    tokens: int
    length: int  # tokens of the sequence up to its last one
    slots: torch.Tensor
    mask: torch.Tensor | None  # [tokens, length], added to the scores; None: the usual causal mask


class _Single(NamedTuple):
    """One sequence with one token in the batch."""

    length: int  # tokens of the sequence up to this one
    row: int  # in the batch
    table: Sequence[int]


class _Decode(NamedTuple):
    """Sequences of similar length with one token each, padded to the longest."""

    rows: torch.Tensor
    slots: torch.Tensor  # [sequences * blocks]
    empty: torch.Tensor  # rows of these blocks that hold no token: not even NaN that lies there may have an effect
    mask: torch.Tensor  # [sequences, 1, 1, blocks * 16], added to the scores


@ATTENTION.register("sdpa")
class SdpaBatch:
    """One call for each prefill, and one for each group of decodes."""

    def __init__(self, storage: KvStorage, spans: Sequence[Span]) -> None:
        self._storage = storage
        self._spans = spans
        self._rows = token_rows(storage, spans)
        self._plans: dict[int | None, tuple[list[_Prefill], list[_Decode]]] = {}

    def attend(
        self, layer: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float | None, window: int | None
    ) -> torch.Tensor:
        self._storage.write(layer, self._rows, key, value)
        plan = self._plans.get(window)
        if plan is None:
            plan = self._plans[window] = self._plan(window)
        out = torch.empty_like(query)
        for prefill in plan[0]:
            self._prefill(layer, prefill, query, key, value, scale, out)
        for decode in plan[1]:
            self._decode(layer, decode, query, scale, out)
        return out

    def _plan(self, window: int | None) -> tuple[list[_Prefill], list[_Decode]]:
        device = self._storage.device
        prefills, decodes = [], []
        row = 0
        for span in self._spans:
            length = span.start + span.tokens
            if span.tokens == 1:
                decodes.append(_Single(length, row, span.table[: blocks_for(length)]))
            else:
                slots = to_device(np.asarray(span.table[: blocks_for(length)]), device)
                prefills.append(_Prefill(row, span.tokens, length, slots, _causal(span, window, self._storage.gpu)))
            row += span.tokens
        return prefills, [self._group(group, window) for group in _similar(decodes, _group_tokens(self._storage))]

    def _group(self, group: list[_Single], window: int | None) -> _Decode:
        device = self._storage.device
        blocks = blocks_for(max(single.length for single in group))
        slots = np.empty((len(group), blocks), dtype=np.int64)
        for padded, single in zip(slots, group, strict=True):
            padded[: len(single.table)] = single.table
            padded[len(single.table) :] = single.table[0]
        lengths = torch.tensor([single.length for single in group], device=device).unsqueeze(1)
        positions = torch.arange(blocks * BLOCK_TOKENS, device=device)
        hidden = positions >= lengths
        if window is not None:
            hidden |= positions < lengths - window
        mask = self._storage.gpu.new_zeros(hidden.shape).masked_fill_(hidden, -torch.inf)
        rows = torch.tensor([single.row for single in group], device=device)
        # The sequence's last block, and where that is its only one, the copies of it that pad it.
        ends = -(-lengths // BLOCK_TOKENS) * BLOCK_TOKENS
        unwritten = (positions >= lengths) & ((positions < ends) | (positions % BLOCK_TOKENS >= lengths))
        empty = unwritten.view(-1).nonzero().squeeze(1)
        return _Decode(rows, to_device(slots.ravel(), device), empty, mask[:, None, None, :])

    def _prefill(
        self,
        layer: int,
        plan: _Prefill,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        scale: float | None,
        out: torch.Tensor,
    ) -> None:
        rows = slice(plan.first, plan.first + plan.tokens)
        if plan.length == plan.tokens:  # all of the sequence's KV is in the batch: no need to read the pool
            k, v = key[rows], value[rows]
        else:
            k, v = (part[: plan.length] for part in self._storage.read(layer, plan.slots))
        q, k, v = (part.transpose(0, 1).unsqueeze(0) for part in (query[rows], k, v))
        attended = scaled_dot_product_attention(
            q, k, v, attn_mask=plan.mask, is_causal=plan.mask is None, scale=scale, enable_gqa=q.shape[1] != k.shape[1]
        )
        out[rows] = attended[0].transpose(0, 1)

    def _decode(self, layer: int, plan: _Decode, query: torch.Tensor, scale: float | None, out: torch.Tensor) -> None:
        sequences = len(plan.rows)
        k, v = self._storage.read(layer, plan.slots, plan.empty)
        _, kv_heads, dim = k.shape
        k, v = (part.view(sequences, -1, kv_heads, dim).transpose(1, 2) for part in (k, v))
        # The query heads that share a KV head are laid out as query positions, so that K and V need no copy for each of them.
        q = query[plan.rows].view(sequences, kv_heads, -1, dim)
        attended = scaled_dot_product_attention(q, k, v, attn_mask=plan.mask, scale=scale)
        out[plan.rows] = attended.reshape(sequences, -1, dim)


def _causal(span: Span, window: int | None, like: torch.Tensor) -> torch.Tensor | None:
    """The mask that is added to the scores of a prefill, with the dtype and device of `like`; None: the usual causal mask."""
    length = span.start + span.tokens
    if span.start == 0 and (window is None or window >= length):
        return None
    mask = like.new_full((span.tokens, length), -torch.inf).triu_(span.start + 1)
    if window is not None:
        mask += like.new_full(mask.shape, -torch.inf).tril_(span.start - window)
    return mask


def _group_tokens(storage: KvStorage) -> float:
    """Most tokens that a group of decodes reads."""
    if storage.device.type != "cpu":
        return float("inf")
    return _CPU_GROUP_BYTES * BLOCK_TOKENS * storage.shape.layers / storage.shape.block_bytes


def _similar(decodes: list[_Single], most_tokens: float) -> list[list[_Single]]:
    """Groups sequences so that padding at most doubles the work on each, and a group reads at most `most_tokens` tokens."""
    groups: list[list[_Single]] = []
    for single in sorted(decodes, key=lambda each: each.length):
        group = groups[-1] if groups else []
        if group and single.length <= min(2 * group[0].length + BLOCK_TOKENS, most_tokens / (len(group) + 1)):
            group.append(single)
        else:
            groups.append([single])
    return groups
