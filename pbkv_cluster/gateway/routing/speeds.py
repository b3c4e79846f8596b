"""How fast the workers have been lately, and how long answers are, measured from the usages that workers report."""

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


class StepSpeed:
    """Seconds that one worker's steps take for each token that they compute or generate, while others run next to them."""

    def __init__(self) -> None:
        self._seconds_per_token = Ewma(WEIGHT, initial=0.0)
        self._measured = False

    @property
    def seconds_per_token(self) -> float | None:
        """None before the first step has ended."""
        return self._seconds_per_token.value if self._measured else None

    def add(self, usage: Usage) -> None:
        tokens, seconds = usage.computed_tokens + usage.generated_tokens, usage.prefill_s + usage.decode_s
        if tokens > 0 and seconds > 0.0:
            self._seconds_per_token.add(seconds / tokens)
            self._measured = True


class OutputLength:
    """Tokens of an answer, over all workers."""

    def __init__(self) -> None:
        self._tokens = Ewma(WEIGHT, initial=0.0)
        self._measured = False

    def add(self, usage: Usage) -> None:
        self._tokens.add(usage.generated_tokens)
        self._measured = True

    def expected(self, max_tokens: int) -> int:
        """Of a step that may generate so many."""
        return min(max_tokens, round(self._tokens.value)) if self._measured else max_tokens
