"""How long the self-test's long prompt is, which bounds what the test costs.

All cases of the test run about `_PASSES` times the long prompt through the model, and `_FLOP` limits what that costs: about 2
floating-point operations per parameter and token, so seconds on the device for a model of any size. The long prompt also has at
most `_LONGEST` tokens, its KV at most `_KV_BYTES`, and one layer's scores, which some kinds of attention materialise, at most
`_SCORE_BYTES`. Logits are computed for a few tokens of each prompt only. Windows longer than the long prompt are left to the
probe, which evaluates the mask at the window's edges; a rotary switch beyond it is left to short prompts around its position.
"""

import math
from typing import Any

import torch

from pbkv_cluster.core.tokens import BLOCK_TOKENS
from pbkv_cluster.gpu_worker.model.probe import Probed

_FLOP = {"cpu": 4e11}  # by type of device
_FLOP_OTHER = 4e14
_PASSES = 6
_LONGEST = 4096 + 64  # tokens: more than the window of most models
_LONG = 96  # tokens of the long prompt where no window asks for more
_KV_BYTES = 1 << 30
_SCORE_BYTES = 1 << 29


def long_prompt(module: Any, probed: Probed, switch: int, max_context: int, device: torch.device) -> int:
    """Tokens of the long prompt: more than the longest window and the rotary switch, within the bounds of time and memory."""
    config = module.config.get_text_config(decoder=True)
    parameters = max(1, sum(parameter.numel() for parameter in module.parameters()))
    width = max(4, probed.shape.dtype.itemsize)
    bound = min(
        max_context,
        _LONGEST,
        int(_FLOP.get(device.type, _FLOP_OTHER) / (2 * parameters * _PASSES)),
        _KV_BYTES * BLOCK_TOKENS // probed.shape.block_bytes,
        math.isqrt(_SCORE_BYTES // (width * config.num_attention_heads)),
    )
    bound = max(bound, min(max_context, 2 * BLOCK_TOKENS + 8))
    stated = getattr(config, "sliding_window", None)
    lengths = {switch, *probed.windows, *([stated] if isinstance(stated, int) else [])}
    wanted = min(max([_LONG, *(length + 2 * BLOCK_TOKENS for length in lengths if length + BLOCK_TOKENS <= bound)]), bound)
    # The model's own cache cannot pass the switch, since `transformers` drops it there.
    return switch if 0 < switch < wanted < switch + BLOCK_TOKENS else wanted
