"""Attention with torch's scaled dot product, on any device."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch.nn.functional import scaled_dot_product_attention

from pbkv_cluster.core.tokens import BLOCK_TOKENS
from pbkv_cluster.gpu_worker.attention.base import ATTENTION, Span, token_rows
from pbkv_cluster.gpu_worker.kv_storage import KvStorage


class _Prefill(NamedTuple):
    """Several tokens of one sequence."""

    first: int  # row of its first token in the batch
    tokens: int
    length: int  # tokens up to its last one
    slots: torch.Tensor
    mask: torch.Tensor | None  # [tokens, length]; None: plainly causal


class _Decode(NamedTuple):
    """One token each of sequences of similar length, padded to the longest."""

    rows: torch.Tensor
    slots: torch.Tensor  # [sequences * blocks]
    blocks: int
    mask: torch.Tensor  # [sequences, 1, 1, blocks * 16]


@ATTENTION.register("sdpa")
class SdpaBatch:
    """torch's scaled dot product attention, on any device: a call for each prefill, one for each group of decodes."""

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
                decodes.append((length, row, span.table))
            else:
                slots = torch.tensor(span.table[: -(-length // BLOCK_TOKENS)], device=device)
                prefills.append(_Prefill(row, span.tokens, length, slots, _causal(span, window, device)))
            row += span.tokens
        return prefills, [self._group(group, window) for group in _similar(decodes)]

    def _group(self, group: list[tuple[int, int, list[int]]], window: int | None) -> _Decode:
        device = self._storage.device
        blocks = -(-max(length for length, _, _ in group) // BLOCK_TOKENS)
        slots = [table[block] if block < len(table) else table[0] for _, _, table in group for block in range(blocks)]
        lengths = torch.tensor([length for length, _, _ in group], device=device).unsqueeze(1)
        positions = torch.arange(blocks * BLOCK_TOKENS, device=device)
        mask = positions < lengths
        if window is not None:
            mask &= positions >= lengths - window
        rows = torch.tensor([row for _, row, _ in group], device=device)
        return _Decode(rows, torch.tensor(slots, device=device), blocks, mask[:, None, None, :])

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
        if plan.length == plan.tokens:  # nothing lies in the pool that is not at hand
            k, v = key[rows], value[rows]
        else:
            k, v = (part[: plan.length] for part in self._storage.read(layer, plan.slots))
        group = query.shape[1] // k.shape[1]
        if group > 1:
            k, v = k.repeat_interleave(group, dim=1), v.repeat_interleave(group, dim=1)
        q, k, v = (part.transpose(0, 1).unsqueeze(0) for part in (query[rows], k, v))
        attended = scaled_dot_product_attention(q, k, v, attn_mask=plan.mask, is_causal=plan.mask is None, scale=scale)
        out[rows] = attended[0].transpose(0, 1)

    def _decode(self, layer: int, plan: _Decode, query: torch.Tensor, scale: float | None, out: torch.Tensor) -> None:
        sequences = len(plan.rows)
        k, v = self._storage.read(layer, plan.slots)
        _, kv_heads, dim = k.shape
        k, v = (part.view(sequences, -1, kv_heads, dim).transpose(1, 2) for part in (k, v))
        # The query heads that share a KV head take the place of query positions: no copy of K and V for them.
        q = query[plan.rows].view(sequences, kv_heads, -1, dim)
        attended = scaled_dot_product_attention(q, k, v, attn_mask=plan.mask, scale=scale)
        out[plan.rows] = attended.reshape(sequences, -1, dim)


def _causal(span: Span, window: int | None, device: torch.device) -> torch.Tensor | None:
    length = span.start + span.tokens
    if span.start == 0 and (window is None or window >= length):
        return None
    query = torch.arange(span.start, length, device=device).unsqueeze(1)
    key = torch.arange(length, device=device)
    mask = key <= query
    if window is not None:
        mask &= key > query - window
    return mask


def _similar(decodes: list[tuple[int, int, list[int]]]) -> list[list[tuple[int, int, list[int]]]]:
    """Groups sequences so that padding at most doubles the work on one."""
    groups: list[list[tuple[int, int, list[int]]]] = []
    for decode in sorted(decodes, key=lambda entry: entry[0]):
        if groups and decode[0] <= 2 * groups[-1][0][0] + BLOCK_TOKENS:
            groups[-1].append(decode)
        else:
            groups.append([decode])
    return groups
