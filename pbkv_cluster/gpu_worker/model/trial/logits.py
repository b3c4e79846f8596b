"""How far apart the logits of two ways to compute the same may be."""

import math

import torch

# RMS difference of a token's logits over their deviation: always allowed, at most. Eager softmax is float32 even in float64.
_ALLOWED = {torch.float64: (1e-6, 1e-5), torch.float32: (3e-5, 1e-2), torch.float16: (1e-2, 0.15), torch.bfloat16: (5e-2, 0.4)}
_NOISE = 10.0  # times the model's own noise is allowed


def allowed_difference(dtype: torch.dtype, noise: float) -> float:
    """The greatest difference that rounding explains.

    Args:
        dtype: of the model.
        noise: difference between two ways in which the model itself computes the same.
    """
    low, high = _ALLOWED.get(dtype, _ALLOWED[torch.float32])
    return min(low + _NOISE * noise, high)


def difference(got: torch.Tensor, expected: torch.Tensor) -> float:
    """Greatest difference of a row, as a share of the standard deviation of what was expected; infinite if not finite."""
    got, expected = got.double(), expected.double()
    spread = expected.std(dim=1, correction=0).clamp_min(1e-6 * float(expected.abs().max()) + 1e-300)
    share = float(((got - expected).square().mean(dim=1).sqrt() / spread).max())
    return share if math.isfinite(share) else math.inf
