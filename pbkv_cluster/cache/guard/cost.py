"""What a step costs that finds so many tokens of its prompt in each tier."""

from collections.abc import Callable, Mapping
from typing import NamedTuple

from pbkv_cluster.core.tokens import BLOCK_TOKENS
from pbkv_cluster.core.usage import Tier


class StepCost(NamedTuple):
    """The prefill of what no tier delivered, and the loads of what slower tiers did."""

    tokens: float  # to prefill; a load counts as the tokens that could be computed in its time
    seconds: float  # of all this; infinite before a prefill has been measured


class CostMeter:
    """Costs of steps at the present speeds of prefills and loads."""

    def __init__(self, copy_seconds: Callable[[Tier, Tier, int], float], compute_seconds: Callable[[int], float]) -> None:
        """Args:
        copy_seconds: how long it takes to copy so many blocks from one tier to another.
        compute_seconds: how long the prefill of a number of tokens takes.
        """
        self._copy_seconds = copy_seconds
        self._compute_seconds = compute_seconds

    def cost(self, prompt_tokens: int, delivered: Mapping[Tier, int]) -> StepCost:
        """The cost of a step.

        Args:
            prompt_tokens: in its prompt.
            delivered: those of them that it finds in each tier.
        """
        missing, token_s = prompt_tokens - sum(delivered.values()), self._compute_seconds(1)
        loaded = ((tier, tokens // BLOCK_TOKENS) for tier, tokens in delivered.items() if tier is not Tier.GPU)
        load_s = sum(self._copy_seconds(tier, Tier.GPU, blocks) for tier, blocks in loaded)
        return StepCost(
            missing + (load_s / token_s if load_s else 0.0),  # no load is made where a prefill takes no time
            (missing * token_s if missing else 0.0) + load_s,
        )
