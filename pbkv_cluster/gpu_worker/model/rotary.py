"""Rotary factors that switch with the length of a sequence (longrope): chosen for each sequence of a batch, not for the batch.

`transformers` has one set of factors for sequences of up to `original_max_position_embeddings` tokens and one for longer ones.
It chooses by the largest position of a batch; here each token gets those of its own sequence. The length of a sequence decides
the factors of all its tokens, so KV of the one kind is of no use to a sequence of the other: see `Namespace.rotary_switch`.

Each rotary module computes both sets by its own code, told positions that make it choose the one or the other; cosines and
sines are then taken from the one or the other, token by token. So nothing need be known of how a module computes them. The
probe and the self-test find a module that chooses in another way.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import wraps
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

_KIND = "longrope"


class RotarySwitch:
    """The rotary modules of a model whose factors switch at one length."""

    def __init__(self, tokens: int, parts: list[torch.nn.Module]) -> None:
        """Args:
        tokens: of the longest sequence with the factors for short ones.
        parts: modules that compute cosines and sines; their `forward` is replaced.
        """
        self.tokens = tokens
        self._is_long: npt.NDArray[np.bool_] | None = None
        for part in parts:
            part.forward = self._by_token(part.forward)

    @contextmanager
    def chosen(self, is_long: npt.NDArray[np.bool_]) -> Iterator[None]:
        """Within, batches get these factors. `is_long` has for each token whether its sequence is a long one."""
        self._is_long = is_long
        try:
            yield
        finally:
            self._is_long = None

    def _by_token(self, compute: Callable[..., tuple[torch.Tensor, ...]]) -> Callable[..., tuple[torch.Tensor, ...]]:
        @wraps(compute)
        def by_token(x: torch.Tensor, position_ids: torch.Tensor, *args: Any, **kwargs: Any) -> tuple[torch.Tensor, ...]:
            is_long = self._is_long
            if is_long is None:
                return compute(x, position_ids, *args, **kwargs)
            # A long sequence's chunk may hold low positions only, so a high one follows the batch's.
            high = torch.full_like(position_ids[..., :1], self.tokens)
            long = tuple(part[..., :-1, :] for part in compute(x, torch.cat([position_ids, high], -1), *args, **kwargs))
            if is_long.all():
                return long
            short = compute(x, position_ids.clamp(max=self.tokens - 1), *args, **kwargs)
            rows = torch.from_numpy(is_long).to(x.device)[:, None]
            return tuple(torch.where(rows, a, b) for a, b in zip(long, short, strict=True))

        return by_token


def find_rotary_switch(module: Any, max_context: int) -> RotarySwitch | None:
    """Takes charge of a model's rotary factors, if they switch with the length within the context.

    Args:
        module: a causal language model.
        max_context: tokens.

    Returns:
        None where no factors switch, or parts of the model do so at different lengths.
    """
    parts, lengths = [], set()
    for part in module.modules():
        if switches := {switch for switch in _switches(part) if switch < max_context}:
            parts.append(part)
            lengths |= switches
    return RotarySwitch(lengths.pop(), parts) if len(lengths) == 1 else None


def _switches(part: torch.nn.Module) -> list[int]:
    """Lengths after which a module's factors are others."""
    kinds = getattr(part, "rope_type", None)
    parameters = getattr(getattr(part, "config", None), "rope_parameters", None) or {}
    if isinstance(kinds, Mapping):  # by type of layer
        found = [parameters.get(layer) or {} for layer, kind in kinds.items() if kind == _KIND]
    else:
        found = [parameters] if kinds == _KIND else []
    lengths = [each.get("original_max_position_embeddings") for each in found]
    return [length for length in lengths if isinstance(length, int)]
