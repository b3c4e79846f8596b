"""What a search for settings maximises."""

from enum import StrEnum


class Objective(StrEnum):
    """A ratio to LRU at the same capacity, which scores 1."""

    TOKENS = "tokens"  # prompt tokens that any tier delivered, over LRU's: the more, the fewer are recomputed
    LATENCY = "latency"  # mean workflow latency under LRU over that under the policy
