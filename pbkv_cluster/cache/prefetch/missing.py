"""Finds what active workflows have in slower tiers and not where it will be wanted."""

from collections import deque
from collections.abc import Callable

from pbkv_cluster.cache.owners import ActiveWorkflows
from pbkv_cluster.cache.tree.node import Node

_LOOKED_AT = 512  # nodes, each time
FOUND_MAX = 64  # nodes, each time: their values are computed


class MissingNodes:
    """Looks at a few workflows each time, so that its cost does not depend on how many there are."""

    def __init__(self, workflows: ActiveWorkflows, is_missing: Callable[[Node], bool]) -> None:
        """Args:
        workflows: whose nodes are looked at.
        is_missing: whether a node is to be found.
        """
        self._workflows = workflows
        self._is_missing = is_missing
        self._turn: deque[str] = deque()  # ids of workflows that have not been looked at in this round

    def take(self) -> list[Node]:
        """The latest nodes of the next workflows that are missing."""
        found: dict[Node, None] = {}
        left = _LOOKED_AT
        if not self._turn:
            self._turn.extend(owner.id for owner in self._workflows.all())
        while self._turn and left > 0 and len(found) < FOUND_MAX:
            owner = self._workflows.find(self._turn.popleft())
            for node in reversed(owner.nodes) if owner is not None else ():
                left -= 1
                if self._is_missing(node):
                    found[node] = None
                if left <= 0 or len(found) >= FOUND_MAX:
                    break
        return list(found)
