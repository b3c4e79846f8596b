"""Paged attention: each token of a batch attends over the blocks of its own sequence.

`transformers` calls `paged_attention` instead of its own attention. The batch is passed to the model as the keyword `paged`, so
there is no global state. A back end is a `PagedBatch`: it plans once for each batch and attends once for each layer.
What a layer asks for and paged attention does not have is refused by name, never ignored.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch

from pbkv_cluster.core.registry import Registry
from pbkv_cluster.core.tokens import BLOCK_TOKENS
from pbkv_cluster.gpu_worker.kv.storage import KvStorage

IMPLEMENTATION = "pbkv_paged"
PROBING = "pbkv_paged_probing"
_OWN_MASK = "it computes an attention mask of its own, which paged attention does not have"


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


@dataclass(frozen=True, slots=True)
class WindowMask:
    """The mask of a layer with a sliding window. Models pass it through to `paged_attention`."""

    window: int  # tokens that a token attends to, including itself

    def __getattr__(self, name: str) -> Any:
        raise NotImplementedError(_OWN_MASK)  # code that looks inside wants a tensor


# Keywords that reach attention and say nothing that a back end must know.
_HARMLESS = frozenset(
    (
        "dropout",
        "is_causal",
        "position_ids",
        "cache_position",
        "position_embeddings",
        "use_cache",
        "return_dict",
        "logits_to_keep",
    )
)


def paged_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: WindowMask | torch.Tensor | None,
    *,
    paged: PagedBatch | None = None,
    scaling: float | None = None,
    sliding_window: int | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Called by `transformers` in every layer, with q, k and v as [1, heads, tokens, dim]; returns [1, tokens, heads, dim].

    Raises:
        NotImplementedError: the layer asks for something that paged attention does not have.
    """
    if paged is None:
        raise NotImplementedError("its layers do not pass on to attention what the model is called with")
    for feature, content in kwargs.items():
        if feature not in _HARMLESS and content is not None and content is not False:
            raise NotImplementedError(f"its attention uses {feature!r}, which paged attention does not have")
    if kwargs.get("is_causal") is False or not getattr(module, "is_causal", True):
        raise NotImplementedError("its attention is not causal: it looks ahead")
    if isinstance(attention_mask, WindowMask):
        sliding_window = attention_mask.window
    elif attention_mask is not None:
        raise NotImplementedError(_OWN_MASK)
    layer: int = module.layer_idx  # type: ignore[assignment]
    q, k, v = (tensor[0].transpose(0, 1) for tensor in (query, key, value))
    return paged.attend(layer, q, k, v, scaling, sliding_window or None).unsqueeze(0), None


def _window_mask(*args: Any, local_size: int | None = None, **kwargs: Any) -> WindowMask | None:
    """Makes no mask, since each back end makes its own; tells only the window of sliding layers."""
    return None if local_size is None else WindowMask(local_size)


def _checked_mask(
    *args: Any, mask_function: Callable[..., torch.Tensor], local_size: int | None = None, **kwargs: Any
) -> WindowMask | None:
    """Like `_window_mask`, for the probe of a model: evaluates the mask at the edges of the window, and at others.

    Raises:
        NotImplementedError: the mask is neither causal nor a sliding window.
    """
    edge = local_size or 4096
    places = {0, 1, 2, 3, 17, 1000, edge, 2 * edge, 2 * edge + 1}
    at = torch.tensor(sorted({max(0, p + d) for p in places for d in (-1, 0, 1)}), device=kwargs.get("device"))
    query, key = at[:, None], at[None, :]
    try:
        seen = mask_function(0, 0, query, key).expand(len(at), len(at))
    except (RuntimeError, IndexError, TypeError) as error:
        raise NotImplementedError("its attention mask depends on the tokens") from error
    if bool((seen & (key > query)).any()):
        raise NotImplementedError("its attention is not causal: it looks ahead")
    expected = key <= query
    if local_size is not None:
        expected &= key > query - local_size
    if bool((seen != expected).any()):
        kind = "chunked" if local_size is not None else "sparse"
        raise NotImplementedError(f"its attention is {kind}: its mask is neither causal nor a sliding window")
    return _window_mask(local_size=local_size)


def install() -> None:
    """Registers paged attention with `transformers` as `IMPLEMENTATION`, and as `PROBING` with a check of the masks."""
    from transformers import AttentionInterface, AttentionMaskInterface

    for name, mask in ((IMPLEMENTATION, _window_mask), (PROBING, _checked_mask)):
        AttentionInterface.register(name, paged_attention)
        AttentionMaskInterface.register(name, mask)


def token_rows(storage: KvStorage, spans: Sequence[Span]) -> torch.Tensor:
    """The rows where the batch's own tokens are stored, for `KvStorage.write`."""
    positions = [np.arange(span.start, span.start + span.tokens) for span in spans]
    slots = [np.asarray(span.table)[at // BLOCK_TOKENS] for span, at in zip(spans, positions, strict=True)]
    offsets = np.concatenate(positions) % BLOCK_TOKENS
    return storage.token_rows(to_device(np.concatenate(slots), storage.device), to_device(offsets, storage.device))


def to_device(indices: np.ndarray[Any, Any], device: torch.device) -> torch.Tensor:
    """Indices as a 64-bit tensor on `device`."""
    return torch.from_numpy(indices.astype(np.int64)).to(device)
