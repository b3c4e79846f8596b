"""Paged attention: each token of a batch attends over the blocks of its own sequence.

`transformers` calls `paged_attention` instead of its own attention. The batch is passed to the model as the keyword `paged`, so
there is no global state. A back end is a `PagedBatch`: it plans once for each batch and attends once for each layer.
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

    start: int  # position in the sequence of its first token
    tokens: int
    table: Sequence[int]  # slots of all blocks up to the one of its last token


class PagedBatch(Protocol):
    """Attention over the sequences of one batch."""

    def attend(
        self, layer: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float | None, window: int | None
    ) -> torch.Tensor:
        """Stores the batch's KV and attends.

        Args:
            layer: its index in the model.
            query: [tokens, heads, dim], span after span.
            key: [tokens, kv_heads, dim], and `value` likewise.
            scale: factor of the scores; None: 1/sqrt(dim).
            window: tokens that a token attends to, including itself; None: all before it.

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
    """Called by `transformers` in every layer, with q, k and v as [1, heads, tokens, dim]; returns [1, tokens, heads, dim]."""
    for feature in ("softcap", "s_aux", "position_bias"):
        if kwargs.get(feature) is not None:
            raise NotImplementedError(f"this model's attention uses {feature!r}, which paged attention does not have")
    if not getattr(module, "is_causal", True):
        raise NotImplementedError("this model's attention is not causal: it looks ahead")
    layer: int = module.layer_idx  # type: ignore[assignment]
    q, k, v = (tensor[0].transpose(0, 1) for tensor in (query, key, value))
    return paged.attend(layer, q, k, v, scaling, sliding_window).unsqueeze(0), None


def _no_mask(*args: Any, **kwargs: Any) -> None:
    """Makes no mask: each back end makes its own."""


def install() -> None:
    """Registers paged attention with `transformers` as `IMPLEMENTATION`."""
    from transformers import AttentionInterface, AttentionMaskInterface

    AttentionInterface.register(IMPLEMENTATION, paged_attention)
    AttentionMaskInterface.register(IMPLEMENTATION, _no_mask)


def token_rows(storage: KvStorage, spans: Sequence[Span]) -> torch.Tensor:
    """The rows where the batch's own tokens are stored, for `KvStorage.write`."""
    positions = [np.arange(span.start, span.start + span.tokens) for span in spans]
    slots = [np.asarray(span.table)[at // BLOCK_TOKENS] for span, at in zip(spans, positions, strict=True)]
    offsets = np.concatenate(positions) % BLOCK_TOKENS
    return storage.token_rows(to_device(np.concatenate(slots), storage.device), to_device(offsets, storage.device))


def to_device(indices: np.ndarray[Any, Any], device: torch.device) -> torch.Tensor:
    """Indices as a 64-bit tensor on `device`."""
    return torch.from_numpy(indices.astype(np.int64)).to(device)
