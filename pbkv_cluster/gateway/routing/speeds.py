"""How fast the workers have been lately, and how long answers are, measured from the usages that workers report."""

from pbkv_cluster.core.clock import Clock
from pbkv_cluster.core.ewma import Ewma
from pbkv_cluster.core.load_speeds import LoadSpeeds
from pbkv_cluster.core.tokens import BLOCK_TOKENS
from pbkv_cluster.core.usage import Tier, Usage

WEIGHT = 0.1  # of the newest sample
# Of a token that is loaded, where its worker has measured nothing, as a share of what it costs to compute one. What others hold
# may be gone when it is asked for.
ASSUMED_COST = {Tier.HOST: 0.2, Tier.DISK: 0.5, Tier.SIBLING: 0.3, Tier.REMOTE: 0.5}


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


class LoadingCost:
    """What it costs one worker to load tokens instead of computing them: tokens that it could compute in the same time.

    It goes by what the worker has measured, its prefill included: so a token is worth loading here if it is there.
    """

    def __init__(self, clock: Clock) -> None:
        """Args:
        clock: by which queues get shorter after they were reported.
        """
        self._clock = clock
        self._speeds: LoadSpeeds | None = None
        self._measured_at = 0.0

    def measured(self, speeds: LoadSpeeds) -> None:
        """Takes in the worker's latest report."""
        self._speeds = speeds
        self._measured_at = self._clock.now()

    def tokens(self, tier: Tier, tokens: int) -> float:
        """How many tokens the worker could compute while it loads `tokens` from a kind of memory, with the loads before it.

        While the worker has not measured that, a fixed share of them.
        """
        if self._speeds is None or self._speeds.prefill_token_s <= 0.0 or tier not in self._speeds.loads:
            return ASSUMED_COST[tier] * tokens
        load = self._speeds.loads[tier]
        queue_s = max(load.queue_s - (self._clock.now() - self._measured_at), 0.0)
        return (queue_s + load.token_s * tokens) / self._speeds.prefill_token_s


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
