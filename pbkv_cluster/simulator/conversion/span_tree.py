"""The agent of a call in an export of spans: the nearest span around it that is one."""

from typing import NamedTuple

_DEPTH_MAX = 256  # a damaged export can have a circle


class _Node(NamedTuple):
    parent: str
    agent: str


class SpanTree:
    """Spans by id, in any order."""

    def __init__(self) -> None:
        self._nodes: dict[str, _Node] = {}

    def add(self, span: str, parent: str, agent: str) -> None:
        """Adds a span; `agent` is the agent's name if it is one, or names one."""
        self._nodes[span] = _Node(parent, agent)

    def agent(self, span: str, default: str) -> str:
        """The agent that a span belongs to; `default` if none is known."""
        for _ in range(_DEPTH_MAX):
            node = self._nodes.get(span)
            if node is None:
                break
            if node.agent:
                return node.agent
            span = node.parent
        return default
