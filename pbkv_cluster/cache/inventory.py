"""What a cache holds, for operators: its largest or hottest runs of blocks, or sums by workflow or agent."""

import heapq
from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import Enum
from itertools import islice

from pbkv_cluster.cache.cache import KVCache
from pbkv_cluster.cache.tree.node import Node
from pbkv_cluster.core.tokens import BLOCK_TOKENS
from pbkv_cluster.core.usage import Tier

NAMES = 16  # workflows and agents that an entry names, at most


class Grouping(Enum):
    """What one entry stands for."""

    RUN = "run"  # blocks that are used together
    WORKFLOW = "workflow"  # active; an entry without a name is what none has used
    AGENT = "agent"  # of active workflows; an entry without a name is what is not known to be used by one


class Order(Enum):
    """Which entries come first."""

    LARGEST = "largest"  # most tokens
    HOTTEST = "hottest"  # most recent uses


@dataclass(slots=True)
class CachedBlocks:
    """One entry."""

    name: str  # block key of a run's last block in hex, workflow, or agent
    start_tokens: int = 0  # of a run: tokens before it
    tokens: int = 0
    tiers: dict[Tier, int] = field(default_factory=dict)  # tokens that each holds
    shared_tokens: int = 0  # that several active workflows have used
    workflows: tuple[str, ...] = ()  # active ones, by their latest use of the cache; at most NAMES
    agents: tuple[str, ...] = ()
    in_use: bool = False
    idle_s: float = float("inf")  # since the last use
    recent_uses: float = 0.0  # each counts half as much after every half-life
    leased_s: float = 0.0  # until its last block lease ends; 0: it has none


class Inventory:
    """Looks at a cache in portions, between which the cache may change: a run may be missed, or be listed as it was."""

    def __init__(
        self, cache: KVCache, by: Grouping, order: Order, limit: int, now: float, workflow: str = "", agent: str = ""
    ) -> None:
        """Args:
        cache: that is looked at.
        by: what an entry stands for.
        order: which entries come first.
        limit: of entries.
        now: seconds, on the cache's clock.
        workflow: only blocks that it has used; empty: all.
        agent: only blocks that it has used; empty: all.
        """
        self._cache = cache
        self._by = by
        self._order = order
        self._limit = limit
        self._now = now
        self._workflow = workflow
        self._agent = agent
        self._nodes = cache.tree.walk()
        self._sums: dict[str, CachedBlocks] = {}
        self._runs: list[tuple[float, int, CachedBlocks]] = []  # a heap of the first `limit`
        self._seen = 0
        self.shared: dict[Tier, int] = {}
        """Tokens of what has been seen that several active workflows have used and no running step uses, by tier; each block
        counts once."""

    def look(self, nodes: int) -> bool:
        """Looks at so many more nodes. False: there are no more."""
        portion = list(islice(self._nodes, nodes))
        for node in portion:
            if any(node.held):  # otherwise it has left the cache since the walk came upon it
                self.see(node)
        return len(portion) == nodes

    def entries(self) -> list[CachedBlocks]:
        """The first entries of what has been seen, in order."""
        if self._by is Grouping.RUN:
            return [entry for *_, entry in sorted(self._runs, reverse=True)]
        return heapq.nlargest(self._limit, self._sums.values(), key=self._rank)

    def see(self, node: Node) -> None:
        """Looks at one node that the cache holds."""
        # Where no policy needs records, agents are not known.
        agents = sorted({agent for segment in node.owners.values() for agent in segment.agents} - {""})
        workflows = [owner.id for owner in sorted(node.owners, key=lambda owner: owner.active_at, reverse=True)]
        if (self._workflow and self._workflow not in workflows) or (self._agent and self._agent not in agents):
            return
        if len(node.owners) > 1 and not node.refs:
            self._add_tiers(self.shared, node)
        match self._by:
            case Grouping.RUN:
                self._add_run(node, workflows, agents)
            case Grouping.WORKFLOW:
                for name in workflows or [""]:
                    if self._workflow in ("", name):
                        self._add(self._sum(name), node, (), agents)
            case Grouping.AGENT:
                for name in agents or [""]:
                    if self._agent in ("", name):
                        self._add(self._sum(name), node, workflows, ())

    def _add_run(self, node: Node, workflows: list[str], agents: list[str]) -> None:
        entry = CachedBlocks("")
        self._add(entry, node, workflows, agents)
        self._seen += 1
        item = self._rank(entry), self._seen, entry
        if len(self._runs) < self._limit:
            heapq.heappush(self._runs, item)
        elif item <= heapq.heappushpop(self._runs, item):
            return
        entry.name = node.key(node.blocks - 1).hex()  # only of those that are kept: keys are hashed when they are asked for
        entry.start_tokens = BLOCK_TOKENS * sum(above.blocks for above in _ancestors(node))

    def _sum(self, name: str) -> CachedBlocks:
        return self._sums.setdefault(name, CachedBlocks(name))

    def _add(self, entry: CachedBlocks, node: Node, workflows: list[str] | tuple[()], agents: list[str] | tuple[()]) -> None:
        tokens = node.blocks * BLOCK_TOKENS
        entry.tokens += tokens
        self._add_tiers(entry.tiers, node)
        if len(node.owners) > 1:
            entry.shared_tokens += tokens
        entry.workflows = _joined(entry.workflows, workflows)
        entry.agents = _joined(entry.agents, agents)
        entry.in_use = entry.in_use or node.refs > 0
        entry.idle_s = min(entry.idle_s, max(0.0, self._now - node.last_access))
        entry.leased_s = max(entry.leased_s, self._cache.leases.seconds_left(node) if node.leases else 0.0)
        entry.recent_uses = max(entry.recent_uses, 2.0 ** (node.uses - self._now / self._cache.half_life_s))

    def _add_tiers(self, tokens: dict[Tier, int], node: Node) -> None:
        for tier in self._cache.tiers:
            if held := node.held[tier.index]:
                tokens[tier.kind] = tokens.get(tier.kind, 0) + held * BLOCK_TOKENS

    def _rank(self, entry: CachedBlocks) -> float:
        return entry.tokens if self._order is Order.LARGEST else entry.recent_uses


def run_of(cache: KVCache, node: Node, now: float) -> CachedBlocks:
    """The entry of one node."""
    inventory = Inventory(cache, Grouping.RUN, Order.LARGEST, 1, now)
    inventory.see(node)
    (entry,) = inventory.entries()
    return entry


def _ancestors(node: Node) -> Iterator[Node]:
    at = node.parent
    while at is not None:
        yield at
        at = at.parent


def _joined(names: tuple[str, ...], more: list[str] | tuple[()]) -> tuple[str, ...]:
    return tuple(dict.fromkeys((*names, *more)))[:NAMES] if more and len(names) < NAMES else names
