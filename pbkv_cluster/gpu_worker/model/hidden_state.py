"""A short numeric summary of a prompt: the hidden state of its last token, projected at random to fewer dimensions.

The model's head computes the next token's logits from this state. A Gaussian projection nearly preserves the distances between
states (Johnson and Lindenstrauss) and needs no training.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

_SEED = 0x9BCF  # of every projection, plus the size of its hidden states


class HiddenProjection:
    """Projects hidden states of one size."""

    def __init__(self, size: int, dims: int, device: torch.device) -> None:
        """Args:
        size: values of a hidden state.
        dims: values of a projection.
        device: of the states.
        """
        # All workers must use the same matrix, whatever their versions and devices. NumPy guarantees that the numbers of a
        # RandomState never change; those of its newer generators, and of torch, may change between versions.
        rows = np.random.RandomState(_SEED + size).standard_normal((dims, size))
        self._matrix = torch.from_numpy(rows.T.astype(np.float32)).contiguous().to(device)

    def __call__(self, states: torch.Tensor) -> list[bytes]:
        """Projects each row of `states`: little-endian float16, root mean square 1. Empty if a value is not finite."""
        projected = states.to(torch.float32) @ self._matrix
        scaled = projected * projected.square().mean(dim=1, keepdim=True).rsqrt()
        rows = scaled.to(torch.float16).cpu().numpy().astype("<f2", copy=False)
        return [row.tobytes() if np.isfinite(row).all() else b"" for row in rows]


@contextmanager
def captured(module: Any) -> Iterator[list[torch.Tensor]]:
    """While open, collects the hidden states that the body of a causal language model passes to its head, [1, tokens, size].

    The list stays empty if the model does not expose them.
    """
    states: list[torch.Tensor] = []

    def note(_module: Any, _args: Any, output: Any) -> None:
        if (last := getattr(output, "last_hidden_state", None)) is not None:
            states.append(last)

    # Hooked for one pass only: a model may be shared, and no prompt ends in most batches.
    handle = module.base_model.register_forward_hook(note)
    try:
        yield states
    finally:
        handle.remove()
