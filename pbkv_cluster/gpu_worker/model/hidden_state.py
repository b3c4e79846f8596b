"""What the model makes of a prompt, in few numbers: the hidden state of its last token, projected at random.

The state is the one that the model's head turns into the next token's logits. A Gaussian projection keeps the distances between
states, nearly (Johnson and Lindenstrauss), and needs no training.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

_SEED = 0x9BCF  # of every projection; the hidden size is added


class HiddenProjection:
    """Projects hidden states of one size to fewer dimensions."""

    def __init__(self, size: int, dims: int, device: torch.device) -> None:
        """Args:
        size: of a hidden state.
        dims: that it is projected to.
        device: where the states are.
        """
        # All workers must agree, of whatever version and on whatever device. NumPy promises the numbers of a RandomState for
        # good; those of its newer generators, and of torch, may change between versions.
        rows = np.random.RandomState(_SEED + size).standard_normal((dims, size))
        self._matrix = torch.from_numpy(rows.T.astype(np.float32)).contiguous().to(device)

    def __call__(self, states: torch.Tensor) -> list[bytes]:
        """Of each row of `states`, little-endian float16 with a root mean square of 1; empty for a row that has none."""
        projected = states.to(torch.float32) @ self._matrix
        scaled = projected * projected.square().mean(dim=1, keepdim=True).rsqrt()
        rows = scaled.to(torch.float16).cpu().numpy().astype("<f2", copy=False)
        return [row.tobytes() if np.isfinite(row).all() else b"" for row in rows]


@contextmanager
def captured(module: Any) -> Iterator[list[torch.Tensor]]:
    """While open, notes the hidden states that the body of a causal language model hands to its head, [1, tokens, size].

    None are noted of a model that does not tell them.
    """
    states: list[torch.Tensor] = []

    def note(_module: Any, _args: Any, output: Any) -> None:
        if (last := getattr(output, "last_hidden_state", None)) is not None:
            states.append(last)

    # For one pass only: a model may be shared, and most batches end no prompt.
    handle = module.base_model.register_forward_hook(note)
    try:
        yield states
    finally:
        handle.remove()
