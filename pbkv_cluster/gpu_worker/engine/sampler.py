"""Chooses the next token. The choice depends on the logits, the seed and the position alone, so that a step which is preempted,
or moves to another worker, continues exactly as it would have.
"""

import hashlib
from collections.abc import Sequence

import torch

from pbkv_cluster.core.sampling import SamplingParams


def sample(logits: torch.Tensor, params: Sequence[SamplingParams], positions: Sequence[int]) -> list[int]:
    """The next token of each row.

    Args:
        logits: [rows, vocabulary], any float type, any device.
        params: of each row; `forced_output` is not looked at.
        positions: index of each row's new token in its output, from 0.
    """
    tokens: list[int] = logits.argmax(dim=-1).tolist()
    for row, (param, position) in enumerate(zip(params, positions, strict=True)):
        if param.temperature > 0.0:
            tokens[row] = _draw(logits[row], param, _uniform(param.seed, position))
    return tokens


def _draw(logits: torch.Tensor, params: SamplingParams, uniform: float) -> int:
    """Nucleus sampling by inversion, in float64 on the CPU so that every device draws the same token."""
    probabilities = torch.softmax(logits.to("cpu", torch.float64) / params.temperature, dim=-1)
    ordered, ids = probabilities.sort(descending=True, stable=True)
    cumulative = ordered.cumsum(0)
    # The nucleus is the smallest set of likeliest tokens whose probabilities add up to top_p.
    size = int(torch.searchsorted(cumulative, params.top_p)) + 1
    nucleus = cumulative[: min(size, len(cumulative))]
    return int(ids[min(int(torch.searchsorted(nucleus, uniform * float(nucleus[-1]), right=True)), len(nucleus) - 1)])


def _uniform(seed: int, position: int) -> float:
    """A number in [0, 1), the same for equal seed and position."""
    digest = hashlib.blake2b(seed.to_bytes(8, "little") + position.to_bytes(8, "little"), digest_size=8).digest()
    return (int.from_bytes(digest, "little") >> 11) / 2**53
