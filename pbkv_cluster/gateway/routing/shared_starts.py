"""How long the starts are that contexts of one agent share between workflows, such as its system prompt."""

from collections import OrderedDict
from dataclasses import dataclass

KEY_BYTES = 8  # of each block key: a context is the keys of its blocks, cut to this length, one after the other


@dataclass(slots=True)
class _Agent:
    workflow: str  # that has its latest context
    context: bytes
    shared: int = 0  # blocks at the start that its contexts in its last two workflows have in common


class SharedStarts:
    """Of the agents that ran last. Those of one name with different first blocks are different agents."""

    def __init__(self, capacity_bytes: int) -> None:
        """Args:
        capacity_bytes: of the keys that are kept; one context is kept even beyond that.
        """
        self._capacity_bytes = capacity_bytes
        self._agents: OrderedDict[tuple[str, bytes], _Agent] = OrderedDict()
        self.size_bytes = 0

    def note(self, workflow: str, agent: str, context: bytes) -> int:
        """Takes note of an agent's context in a workflow.

        Returns:
            How many blocks at its start the agent's context in another workflow has, too, as far as is known.
        """
        name = agent, context[:KEY_BYTES]
        found = self._agents.pop(name, None) or _Agent(workflow, b"")
        if found.workflow != workflow:
            found.workflow, found.shared = workflow, common(context, found.context)
        self.size_bytes += len(context) - len(found.context)
        found.context = context
        self._agents[name] = found
        while self.size_bytes > self._capacity_bytes and len(self._agents) > 1:
            _, oldest = self._agents.popitem(last=False)
            self.size_bytes -= len(oldest.context)
        return min(found.shared, len(context) // KEY_BYTES)


def common(one: bytes, other: bytes) -> int:
    """Blocks that two contexts share from the start, by bisection."""
    low, high = 0, min(len(one), len(other)) // KEY_BYTES
    while low < high:
        middle = (low + high + 1) // 2
        start, stop = low * KEY_BYTES, middle * KEY_BYTES
        if one[start:stop] == other[start:stop]:
            low = middle
        else:
            high = middle - 1
    return low
