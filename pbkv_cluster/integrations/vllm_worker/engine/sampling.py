"""Sampling parameters as vLLM has them."""

from collections.abc import Collection
from typing import Any

from pbkv_cluster.core.errors import FailedPrecondition
from pbkv_cluster.core.sampling import SamplingParams

_SEED_MASK = (1 << 63) - 1  # vLLM's are signed


def vllm_sampling(sampling: SamplingParams, max_tokens: int, ends: Collection[int]) -> dict[str, Any]:
    """Arguments of vLLM's `SamplingParams`.

    Stop strings are not among them: vLLM runs without a tokenizer, and the worker finds them in the text.

    Args:
        sampling: as the step asks for it.
        max_tokens: that it may generate here, at most.
        ends: ids of the tokens after which an output is complete.

    Raises:
        FailedPrecondition: the step forces its output, which vLLM cannot do.
    """
    if sampling.forced_output is not None:
        raise FailedPrecondition("sampling.forced_output: vLLM generates by itself; only the engine `pbkv` replays outputs")
    is_greedy = sampling.temperature == 0.0
    return {
        "max_tokens": max_tokens,
        "temperature": sampling.temperature,
        "top_p": 1.0 if is_greedy else sampling.top_p,
        "seed": None if is_greedy else sampling.seed & _SEED_MASK,
        "ignore_eos": sampling.ignore_eos,
        "stop_token_ids": [] if sampling.ignore_eos else sorted(ends),
        "logprobs": sampling.top_logprobs,
        "detokenize": False,
    }
