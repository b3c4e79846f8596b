"""Ranks nodes of a foreign prefix tree by how often they were used, older uses counting less: our policy `lfu`."""

from __future__ import annotations

import math
from typing import Protocol
from weakref import WeakKeyDictionary

from pbkv_cluster.cache.tree.aged_uses import aged_uses
from pbkv_cluster.core.errors import InvalidArgument

_MAX_COUNTED = 64  # uses of a node since it was ranked last; more say no more


class CountedNode(Protocol):
    """What is used of SGLang's `TreeNode`."""

    hit_count: int
    last_access_time: float  # seconds


class AgedUses:
    """Counts of uses, each counting half as much every half-life.

    A node shows how often it was used, and when last, only when it is ranked: what came in between counts as of its last use.
    """

    def __init__(self, half_life_s: float) -> None:
        """Args:
        half_life_s: seconds.

        Raises:
            InvalidArgument: it is not a positive number.
        """
        if isinstance(half_life_s, bool) or not (half_life_s > 0 and math.isfinite(half_life_s)):
            raise InvalidArgument("half_life_s", f"must be a positive number of seconds, got {half_life_s!r}")
        self._half_life_s = half_life_s
        self._counted: WeakKeyDictionary[CountedNode, tuple[int, float]] = WeakKeyDictionary()

    @property
    def known(self) -> int:
        """Nodes that exist and have been ranked."""
        return len(self._counted)

    def value(self, node: CountedNode) -> float:
        """The value of a node: what has the lowest is evicted first. It changes only with uses of the node."""
        seen, uses = self._counted.get(node, (-1, -math.inf))  # to have entered the tree is a use as well
        new = node.hit_count - seen
        if new > 0:
            for _ in range(min(new, _MAX_COUNTED)):
                uses = aged_uses(uses, node.last_access_time, self._half_life_s)
            self._counted[node] = node.hit_count, uses
        return uses
