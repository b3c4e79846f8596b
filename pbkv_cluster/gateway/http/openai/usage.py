"""Usage as answers of OpenAI's API write it."""

from collections.abc import Iterable
from typing import Any

from pbkv_cluster.core.usage import Usage


def cached_tokens(usage: Usage) -> int:
    """Prompt tokens that the cache delivered, from whatever tier."""
    return sum(usage.delivered.values())


def usage_json(usages: Iterable[Usage]) -> dict[str, Any]:
    """Of one request: its choices share one prompt, which counts once."""
    all_usages = list(usages)
    prompt = all_usages[0].prompt_tokens
    completion = sum(usage.generated_tokens for usage in all_usages)
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
        "prompt_tokens_details": {"cached_tokens": cached_tokens(all_usages[0])},
    }
