"""How fast the workers have been lately, measured from the usages that they report."""

from pbkv_cluster.core.tokens import BLOCK_TOKENS
from pbkv_cluster.core.usage import Usage

_WEIGHT = 0.1  # of the newest sample


class Rolling:
    """An exponentially weighted mean. The first sample replaces the initial guess."""

    def __init__(self, guess: float) -> None:
        self.value = guess
        self._seen = False

    def add(self, sample: float) -> None:
        self.value = self.value + _WEIGHT * (sample - self.value) if self._seen else sample
        self._seen = True


class PrefillSpeed:
    """Seconds of prefill per computed token, over all workers."""

    def __init__(self) -> None:
        self._seconds_per_token = Rolling(guess=2e-4)

    @property
    def seconds_per_token(self) -> float:
        return self._seconds_per_token.value

    def add(self, usage: Usage) -> None:
        # Fewer tokens than a block measure the fixed cost of a forward pass, not the cost of a token.
        if usage.computed_tokens >= BLOCK_TOKENS and usage.prefill_s > 0.0:
            self._seconds_per_token.add(usage.prefill_s / usage.computed_tokens)
