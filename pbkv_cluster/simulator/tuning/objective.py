"""What a search for settings makes large."""

from enum import StrEnum


class Objective(StrEnum):
    """A ratio: LRU at the same capacity has 1."""

    HIT = "hit"  # GPU hit rate over LRU's
    LATENCY = "latency"  # LRU's mean latency of a workflow over the policy's
