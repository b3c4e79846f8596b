"""The step graph of a workflow: which agent follows which, declared by the client.

Source: the Agent Step Graph of KVFlow (arXiv 2507.07400). Its graph has no loops; ours may, since agents come back.
"""

from collections.abc import Collection
from dataclasses import dataclass
from enum import StrEnum

from pbkv_cluster.core import checks
from pbkv_cluster.core.errors import InvalidArgument

MAX_NODES = 256
MAX_PREDECESSORS = 4096  # summed over all nodes
MAX_GRAPH_BYTES = 65_536  # of all names, each counted as often as it is written


class Join(StrEnum):
    """When an agent with several predecessors runs."""

    AND = "and"  # after all of them
    OR = "or"  # after any one


@dataclass(frozen=True, slots=True)
class StepNode:
    """One agent of a graph."""

    agent: str
    predecessors: tuple[str, ...] = ()  # agents that it runs after; itself too, if it repeats
    join: Join = Join.AND


@dataclass(frozen=True, slots=True)
class StepGraph:
    """The agents of a workflow, in any order."""

    nodes: tuple[StepNode, ...]

    def __post_init__(self) -> None:
        """Raises:
        InvalidArgument: the nodes are not a graph; the field is named as on the wire.
        """
        if not 1 <= len(self.nodes) <= MAX_NODES:
            raise InvalidArgument("step_graph.nodes", f"from 1 to {MAX_NODES} agents, got {len(self.nodes)}")
        edges = sum(len(node.predecessors) for node in self.nodes)
        if edges > MAX_PREDECESSORS:
            raise InvalidArgument("step_graph.nodes.predecessors", f"at most {MAX_PREDECESSORS} in all, got {edges}")
        if (size := self.size_bytes) > MAX_GRAPH_BYTES:
            raise InvalidArgument("step_graph", f"its names may have {MAX_GRAPH_BYTES} bytes in all, got {size}")
        known: set[str] = set()
        for position, node in enumerate(self.nodes):
            field = f"step_graph.nodes[{position}].agent_id"
            checks.not_empty(field, node.agent)
            if node.agent in known:
                raise InvalidArgument(field, f"{node.agent!r} is there already: one node an agent")
            known.add(node.agent)
        for position, node in enumerate(self.nodes):
            _check_predecessors(f"step_graph.nodes[{position}].predecessors", node.predecessors, known)

    @property
    def size_bytes(self) -> int:
        """UTF-8 bytes of all names."""
        return sum(len(name.encode()) for node in self.nodes for name in (node.agent, *node.predecessors))

    def steps_to_execution(self, current: Collection[str]) -> dict[str, int]:
        """How many steps from now each agent can run at the soonest. O(nodes and predecessors).

        With an AND join that is one more than the furthest of the agent's predecessors, otherwise one more than the nearest.

        Args:
            current: the agents that run, or ran last. Agents that are not in the graph are ignored.

        Returns:
            At least 1 for each agent that can be reached; others are left out. A current agent is reached if it runs again.
            (KVFlow gives it 0, but blocks in use need no rank, and blocks that it has finished with are not in use.)
        """
        followers: dict[str, list[StepNode]] = {}
        missing: dict[str, int] = {}  # predecessors still to be reached before the agent is
        for node in self.nodes:
            missing[node.agent] = len(node.predecessors) if node.join is Join.AND else 1
            for agent in node.predecessors:
                followers.setdefault(agent, []).append(node)
        steps: dict[str, int] = {}
        reached, distance = set(current), 0
        # Breadth first: an agent is reached together with the last predecessor that it needs, so no value is ever revised.
        while reached:
            distance += 1
            following: set[str] = set()
            for agent in reached:
                for node in followers.get(agent, ()):
                    missing[node.agent] -= 1
                    if missing[node.agent] == 0:
                        steps[node.agent] = distance
                        following.add(node.agent)
            reached = following.difference(current)
        return steps

    def advance(self, current: frozenset[str], agent: str) -> frozenset[str]:
        """The current agents after `agent` has begun: `agent`, and those current before, without its predecessors.

        A predecessor stays current while another branch that starts from it has yet to run and joins (AND) with the branch of
        `agent`. So a client that runs parallel branches one after the other loses none. An agent that is not in the graph
        changes nothing.
        """
        predecessors = {node.agent: node.predecessors for node in self.nodes}
        if agent not in predecessors:
            return current
        siblings = {
            sibling
            for node in self.nodes
            if node.join is Join.AND and agent in node.predecessors
            for sibling in node.predecessors
            if sibling != agent and sibling not in current
        }
        waited_for = {before for sibling in siblings for before in predecessors[sibling]}
        return (current - (set(predecessors[agent]) - waited_for)) | {agent}


def _check_predecessors(field: str, predecessors: tuple[str, ...], known: set[str]) -> None:
    if isinstance(predecessors, str):
        raise InvalidArgument(field, f"must be a tuple of agents, got {predecessors!r}")
    for agent in predecessors:
        if agent not in known:
            raise InvalidArgument(field, f"{agent!r} is no agent of the graph")
    if len(set(predecessors)) < len(predecessors):
        raise InvalidArgument(field, "names an agent twice")
