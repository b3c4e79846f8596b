"""Finds what active workflows have in slower tiers and not on the GPU."""

from collections import deque

from pbkv_cluster.cache.owners import ActiveWorkflows
from pbkv_cluster.cache.tree.node import GPU, Node

_LOOKED_AT = 512  # nodes, each time
_FOUND = 64  # nodes, each time: their values are computed


class MissingNodes:
    """Looks at a few workflows each time, so that its cost does not depend on how many there are."""

    def __init__(self, workflows: ActiveWorkflows) -> None:
        self._workflows = workflows
        self._turn: deque[str] = deque()  # ids of workflows that have not been looked at in this round

    def take(self) -> list[Node]:
        """The latest nodes of the next workflows of which the GPU does not hold all blocks."""
        found: dict[Node, None] = {}
        left = _LOOKED_AT
        if not self._turn:
            self._turn.extend(owner.id for owner in self._workflows.all())
        while self._turn and left > 0 and len(found) < _FOUND:
            owner = self._workflows.find(self._turn.popleft())
            for node in reversed(owner.nodes) if owner is not None else ():
                left -= 1
                if node.held[GPU] < node.blocks:
                    found[node] = None
                if left <= 0 or len(found) >= _FOUND:
                    break
        return list(found)
