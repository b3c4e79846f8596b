"""What is known of spans as the ancestors of others: which agent, which conversation a span belongs to."""

from collections import OrderedDict
from collections.abc import Iterator
from typing import NamedTuple

from pbkv_cluster.integrations.otel.spans import Span

_MAX_DEPTH = 256  # ancestors looked at; malformed spans may name each other as parents


class Found(NamedTuple):
    """An answer, or that there is none: then `whole` tells whether all ancestors were known."""

    name: str
    whole: bool


class _Link(NamedTuple):
    parent: str
    agent: str
    conversation: str
    is_step: bool


class Ancestry:
    """Remembers spans by trace and id, a bounded number: over the limit those that came first are forgotten."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._links: OrderedDict[tuple[str, str], _Link] = OrderedDict()

    def __len__(self) -> int:
        return len(self._links)

    def add(self, span: Span) -> bool:
        """Notes a span; False if it was known."""
        key = (span.trace, span.id)
        if key in self._links:
            return False
        self._links[key] = _Link(span.parent, span.agent, span.conversation, span.is_step)
        if len(self._links) > self._limit:
            self._links.popitem(last=False)
        return True

    def agent_of(self, span: Span) -> Found:
        """The agent that the span names, else the nearest ancestor that does."""
        if span.agent:
            return Found(span.agent, True)
        for link in self._above(span):
            if link is None:
                return Found("", False)
            if link.agent:
                return Found(link.agent, True)
        return Found("", True)

    def conversation_of(self, span: Span) -> str:
        """The conversation that the span names, else the nearest known ancestor that does."""
        if span.conversation:
            return span.conversation
        return next((link.conversation for link in self._above(span) if link is not None and link.conversation), "")

    def within_step(self, span: Span) -> bool:
        """Whether an ancestor is a model call too: two instrumentations, of framework and client, have told of the same one."""
        return any(link is not None and link.is_step for link in self._above(span))

    def _above(self, span: Span) -> Iterator[_Link | None]:
        """Ancestors from the nearest; None in the end if not all are known."""
        parent = span.parent
        for _ in range(_MAX_DEPTH):
            if not parent:
                return
            link = self._links.get((span.trace, parent))
            yield link
            if link is None:
                return
            parent = link.parent
