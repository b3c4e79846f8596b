"""The position of a workflow in the step graph that its client declared: which agents may run next.

Every edge of the graph may carry a mark, as in a Petri net: it is set when the predecessor runs and removed when the successor
does. So an AND join may run once all its predecessors have run since it last ran, an OR node once any of them has; loops need
no rule of their own. Agents without predecessors have a mark from the start.
"""

from functools import lru_cache

from pbkv_cluster.core.workflow.step_graph import Join, StepGraph

_ALTERNATIVE = 0.2  # weight of a branch that was not taken and that no join waits for: more often a choice than a fork


class _Layout:
    """A graph as bit masks of nodes and of marks; a mark has the number of its edge."""

    def __init__(self, graph: StepGraph) -> None:
        self.agents = tuple(node.agent for node in graph.nodes)
        self.numbers = {agent: at for at, agent in enumerate(self.agents)}
        self.successors: list[list[int]] = [[] for _ in self.agents]
        self.into = [0] * len(self.agents)  # marks that a node removes
        self.out = [0] * len(self.agents)  # marks that it sets
        self.start = 0  # marks before the first step
        predecessors = [[self.numbers[agent] for agent in node.predecessors] for node in graph.nodes]
        entries = [at for at, before in enumerate(predecessors) if not before] or range(
            len(self.agents)
        )  # a circle has no entry
        edge = 0
        for at in entries:
            self.into[at] |= 1 << edge
            self.start |= 1 << edge
            edge += 1
        edges: dict[tuple[int, int], int] = {}
        for at, befores in enumerate(predecessors):
            for before in befores:
                self.successors[before].append(at)
                self.into[at] |= 1 << edge
                self.out[before] |= 1 << edge
                edges[before, at] = 1 << edge
                edge += 1
        self.reach = [self._reached(at, without=-1) for at in range(len(self.agents))]
        self.joins = [
            (at, befores) for at, befores in enumerate(predecessors) if graph.nodes[at].join is Join.AND and len(befores) > 1
        ]
        # An AND join on a loop could never run if it waited for predecessors that only run after it. These count as
        # alternatives to its other predecessors.
        self.all_of: dict[int, tuple[int, int]] = {}  # by AND join: marks it needs together, and marks that suffice alone
        for at, befores in self.joins:
            forward = 0
            for entry in entries:
                if entry != at:
                    forward |= 1 << entry | self._reached(entry, without=at)
            together = sum(edges[before, at] for before in befores if before != at and forward >> before & 1)
            self.all_of[at] = together, self.into[at] & ~together
        self._forks: dict[tuple[int, int], bool] = {}

    def _reached(self, start: int, without: int) -> int:
        """Nodes that can be reached from a node without passing another; the node itself only on a circle."""
        found, stack = 0, [start]
        while stack:
            for node in self.successors[stack.pop()]:
                if node != without and not found >> node & 1:
                    found |= 1 << node
                    stack.append(node)
        return found

    def enabled(self, marks: int, node: int) -> bool:
        if node in self.all_of:
            together, alone = self.all_of[node]
            return bool((together and marks & together == together) or marks & alone)
        return bool(marks & self.into[node])

    def fork(self, ran: int, other: int) -> bool:
        """Whether an AND join waits for both branches: one of its predecessors can be reached from the other branch only."""
        known = self._forks.get((ran, other))
        if known is None:
            here, there = self.reach[ran] | 1 << ran, self.reach[other] | 1 << other
            known = self._forks[ran, other] = any(
                any(here >> before & 1 for before in befores)
                and any(there >> before & 1 and not here >> before & 1 for before in befores)
                for _, befores in self.joins
            )
        return known


@lru_cache(maxsize=256)
def _layout(graph: StepGraph) -> _Layout:
    return _Layout(graph)


class GraphWalk:
    """A position in a graph. Immutable and hashable; equal positions are equal."""

    __slots__ = ("_layout", "_marks", "_node")

    def __init__(self, layout: _Layout, marks: int, node: int) -> None:
        self._layout = layout
        self._marks = marks
        self._node = node  # that was the latest to run; -1: none

    @classmethod
    def of(cls, graph: StepGraph) -> "GraphWalk":
        """The position before the first step."""
        layout = _layout(graph)
        return cls(layout, layout.start, -1)

    def after(self, agent: str) -> "GraphWalk":
        """The position after an agent has started, whether the graph allows that or not; unknown agents change nothing."""
        node = self._layout.numbers.get(agent)
        if node is None:
            return self
        return GraphWalk(self._layout, self._marks & ~self._layout.into[node] | self._layout.out[node], node)

    def enabled(self) -> dict[str, float]:
        """The agents that may run next, with prior weights: 1, less for an alternative that was not taken."""
        layout = self._layout
        fresh = range(len(layout.agents)) if self._node < 0 else layout.successors[self._node]
        found: dict[str, float] = {}
        for node, agent in enumerate(layout.agents):
            if layout.enabled(self._marks, node):
                expected = node in fresh or layout.fork(self._node, node)
                found[agent] = 1.0 if expected else _ALTERNATIVE
        return found

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, GraphWalk):
            return NotImplemented
        return (self._layout, self._marks, self._node) == (other._layout, other._marks, other._node)

    def __hash__(self) -> int:
        return hash((id(self._layout), self._marks, self._node))
