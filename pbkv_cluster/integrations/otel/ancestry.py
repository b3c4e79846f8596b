"""Finds the agent and the conversation of a span: its own, or those of the spans around it."""

from collections import OrderedDict
from collections.abc import Iterator
from typing import NamedTuple

from pbkv_cluster.integrations.otel.reading.dialects import Role
from pbkv_cluster.integrations.otel.reading.spans import Span

_MAX_DEPTH = 256  # ancestors looked at; malformed spans can form a cycle


class AgentFound(NamedTuple):
    """The agent of a span."""

    name: str  # empty: none was found
    final: bool  # spans that arrive later cannot change the answer


class _Link(NamedTuple):
    parent: str
    role: Role
    agent: str
    node: str
    conversation: str


class Ancestry:
    """Remembers a bounded number of spans by trace and id; beyond it, those that arrived first are forgotten."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._links: OrderedDict[tuple[str, str], _Link] = OrderedDict()

    def __len__(self) -> int:
        return len(self._links)

    def add(self, span: Span) -> bool:
        """Remembers a span; returns False if it was known."""
        key = (span.trace, span.id)
        if key in self._links:
            return False
        self._links[key] = _Link(span.parent, span.role, span.agent, span.node, span.conversation)
        if len(self._links) > self._limit:
            self._links.popitem(last=False)
        return True

    def agent_of(self, span: Span) -> AgentFound:
        """The agent named by the span, or else by its nearest ancestor that names one.

        Where that is a graph, or nothing, the agent is the outermost task around the span: a node of the graph.
        """
        if span.agent:
            return AgentFound(span.agent, True)
        node = ""
        for link in self._ancestors(span):
            if link is None:
                return AgentFound(node, False)
            if link.agent:
                return AgentFound(node if node and link.role is Role.GRAPH else link.agent, True)
            node = link.node or node
        return AgentFound(node, True)

    def conversation_of(self, span: Span) -> str:
        """The conversation named by the span, or else by its nearest known ancestor that names one."""
        if span.conversation:
            return span.conversation
        return next((link.conversation for link in self._ancestors(span) if link is not None and link.conversation), "")

    def within_step(self, span: Span) -> bool:
        """Whether an ancestor is a model call too: the framework and the client library have both reported the same call."""
        return any(link is not None and link.role is Role.STEP for link in self._ancestors(span))

    def _ancestors(self, span: Span) -> Iterator[_Link | None]:
        """Yields the ancestors, nearest first, and None after them if some are unknown."""
        parent = span.parent
        for _ in range(_MAX_DEPTH):
            if not parent:
                return
            link = self._links.get((span.trace, parent))
            yield link
            if link is None:
                return
            parent = link.parent
