"""How fast the workers have been lately, measured from the usages that they report."""

from pbkv_cluster.core.ewma import Ewma
from pbkv_cluster.core.tokens import BLOCK_TOKENS
from pbkv_cluster.core.usage import Usage

WEIGHT = 0.1  # of the newest sample


class PrefillSpeed:
    """Seconds of prefill per computed token, over all workers."""

    def __init__(self) -> None:
        self._seconds_per_token = Ewma(WEIGHT, initial=2e-4)

    @property
    def seconds_per_token(self) -> float:
        return self._seconds_per_token.value

    def add(self, usage: Usage) -> None:
        # Fewer tokens than a block measure the fixed cost of a forward pass, not the cost of a token.
        if usage.computed_tokens >= BLOCK_TOKENS and usage.prefill_s > 0.0:
            self._seconds_per_token.add(usage.prefill_s / usage.computed_tokens)
