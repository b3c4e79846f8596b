"""The step graph of a workflow: which agent follows which, declared by the client.

Source: the Agent Step Graph of KVFlow (arXiv 2507.07400). Its graph has no loops; ours may, since agents come back.
"""

from collections.abc import Collection
from dataclasses import dataclass
from enum import StrEnum

from pbkv_cluster.core.errors import InvalidArgument

MAX_NODES = 256
MAX_PREDECESSORS = 4096  # of all nodes together


class Join(StrEnum):
    """When an agent with several predecessors runs."""

    AND = "and"  # after all of them
    OR = "or"  # after any one


@dataclass(frozen=True, slots=True)
class StepNode:
    """One agent."""

    agent: str
    predecessors: tuple[str, ...] = ()  # agents that it runs after; itself too, if it repeats
    join: Join = Join.AND


@dataclass(frozen=True, slots=True)
class StepGraph:
    """The agents of a workflow, in any order."""

    nodes: tuple[StepNode, ...]

    def __post_init__(self) -> None:
        """Raises:
        InvalidArgument: the nodes make no graph; the field is named as on the wire.
        """
        if not 1 <= len(self.nodes) <= MAX_NODES:
            raise InvalidArgument("step_graph.nodes", f"from 1 to {MAX_NODES} agents, got {len(self.nodes)}")
        edges = sum(len(node.predecessors) for node in self.nodes)
        if edges > MAX_PREDECESSORS:
            raise InvalidArgument("step_graph.nodes.predecessors", f"at most {MAX_PREDECESSORS} in all, got {edges}")
        known: set[str] = set()
        for position, node in enumerate(self.nodes):
            field = f"step_graph.nodes[{position}].agent_id"
            if not node.agent:
                raise InvalidArgument(field, "must not be empty")
            if node.agent in known:
                raise InvalidArgument(field, f"{node.agent!r} is there already: one node an agent")
            known.add(node.agent)
        for position, node in enumerate(self.nodes):
            _check_predecessors(f"step_graph.nodes[{position}].predecessors", node.predecessors, known)

    def steps_to_execution(self, current: Collection[str]) -> dict[str, int]:
        """How many steps from now each agent runs next, at the soonest: after an AND join one more than the furthest of its
        predecessors, else one more than the nearest. O(nodes and predecessors).

        Args:
            current: the agents that run, or ran last; agents that the graph does not know lead nowhere.

        Returns:
            At least 1 an agent. One that is not reached is left out. A current one is in only if it comes back, at the steps
            that this takes: KVFlow gives it 0, but blocks in use need no rank, and what it leaves behind is not used now.
        """
        followers: dict[str, list[StepNode]] = {}
        missing: dict[str, int] = {}  # predecessors that have yet to be reached before the agent is
        for node in self.nodes:
            missing[node.agent] = len(node.predecessors) if node.join is Join.AND else 1
            for agent in node.predecessors:
                followers.setdefault(agent, []).append(node)
        steps: dict[str, int] = {}
        reached, distance = set(current), 0
        # Breadth first: an agent is reached when the last predecessor that it needs is, so no value is ever revised.
        while reached:
            distance += 1
            behind: set[str] = set()
            for agent in reached:
                for node in followers.get(agent, ()):
                    missing[node.agent] -= 1
                    if missing[node.agent] == 0:
                        steps[node.agent] = distance
                        behind.add(node.agent)
            reached = behind.difference(current)
        return steps

    def advance(self, current: frozenset[str], agent: str) -> frozenset[str]:
        """The current agents once `agent` begins: itself, and those before it but for the predecessors that it follows.

        A predecessor stays if it has yet to be followed by another branch of an AND join that `agent` leads to, so that
        branches which are run one after the other are all kept in sight. An agent that the graph does not know changes nothing.
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
