"""What a search for settings maximises."""

from enum import StrEnum


class Objective(StrEnum):
    """A ratio to LRU at the same capacity, which scores 1."""

    HIT = "hit"  # GPU hit rate over LRU's
    LATENCY = "latency"  # mean workflow latency under LRU over that under the policy
