"""Paged attention: each token of a batch attends over the blocks of its own sequence.

`transformers` calls `paged_attention` in place of its own. The batch travels with the call as the keyword `paged`, so nothing
is global. A back end is a `PagedBatch`: it plans once for a batch and attends once a layer.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch

from pbkv_cluster.core.registry import Registry
from pbkv_cluster.core.tokens import BLOCK_TOKENS
from pbkv_cluster.gpu_worker.kv.storage import KvStorage

IMPLEMENTATION = "pbkv_paged"


class Span(NamedTuple):
    """One sequence's part of a batch."""

    start: int  # position of its first token in the sequence
    tokens: int
    table: Sequence[int]  # slots of all blocks up to its last token


class PagedBatch(Protocol):
    """Attention over the sequences of one batch."""

    def attend(
        self, layer: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float | None, window: int | None
    ) -> torch.Tensor:
        """Stores the batch's KV and attends.

        Args:
            layer: of the model.
            query: [tokens, heads, dim], the spans one after the other.
            key: [tokens, kv_heads, dim], and `value` likewise.
            scale: of the scores; None is 1/sqrt(dim).
            window: tokens that one may look back on, itself included; None is all.

        Returns:
            [tokens, heads, dim]
        """
        ...


ATTENTION: Registry[PagedBatch] = Registry("engine.attention")


def paged_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    paged: PagedBatch,
    scaling: float | None = None,
    sliding_window: int | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """What `transformers` calls in every layer: q, k, v are [1, heads, tokens, dim]; the answer is [1, tokens, heads, dim]."""
    for feature in ("softcap", "s_aux", "position_bias"):
        if kwargs.get(feature) is not None:
            raise NotImplementedError(f"this model's attention uses {feature!r}, which paged attention does not have")
    if not getattr(module, "is_causal", True):
        raise NotImplementedError("this model's attention is not causal: it looks ahead")
    layer: int = module.layer_idx  # type: ignore[assignment]
    q, k, v = (tensor[0].transpose(0, 1) for tensor in (query, key, value))
    return paged.attend(layer, q, k, v, scaling, sliding_window).unsqueeze(0), None


def _no_mask(*args: Any, **kwargs: Any) -> None:
    """Masks are the back end's business."""


def install() -> None:
    """Makes the implementation known to `transformers` under `IMPLEMENTATION`."""
    from transformers import AttentionInterface, AttentionMaskInterface

    AttentionInterface.register(IMPLEMENTATION, paged_attention)
    AttentionMaskInterface.register(IMPLEMENTATION, _no_mask)


def token_rows(storage: KvStorage, spans: Sequence[Span]) -> torch.Tensor:
    """Where the batch's own tokens are stored; for `KvStorage.write`."""
    positions = [np.arange(span.start, span.start + span.tokens) for span in spans]
    slots = [np.asarray(span.table)[at // BLOCK_TOKENS] for span, at in zip(spans, positions, strict=True)]
    offsets = np.concatenate(positions) % BLOCK_TOKENS
    return storage.token_rows(to_device(np.concatenate(slots), storage.device), to_device(offsets, storage.device))


def to_device(indices: np.ndarray[Any, Any], device: torch.device) -> torch.Tensor:
    """Indices as torch takes them, in 64 bits."""
    return torch.from_numpy(indices.astype(np.int64)).to(device)
