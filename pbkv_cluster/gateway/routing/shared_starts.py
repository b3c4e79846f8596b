"""How long the starts are that contexts of one agent share between workflows, such as its system prompt."""

from collections import OrderedDict
from dataclasses import dataclass

KEY_BYTES = 8  # of each block key: a context is the keys of its blocks, cut to this length, one after the other
_ENTRY_BYTES = 300  # that an entry takes beside name and keys


@dataclass(slots=True)
class _Latest:
    workflow: str  # that has the latest context
    context: bytes
    shared: int = 0  # blocks at the start that the latest contexts of two workflows have in common


class SharedStarts:
    """The latest contexts by their first block, and by agent among them: names of agents may be made up for each workflow."""

    def __init__(self, capacity_bytes: int) -> None:
        """Args:
        capacity_bytes: that may be taken; one entry is kept even beyond that.
        """
        self._capacity_bytes = capacity_bytes
        self._latest: OrderedDict[tuple[bytes, str], _Latest] = OrderedDict()
        self.size_bytes = 0

    def note(self, workflow: str, agent: str, context: bytes) -> int:
        """Takes note of an agent's context in a workflow.

        Returns:
            How many blocks at its start another workflow's context has, too, as far as is known.
        """
        if not context:
            return 0
        first = context[:KEY_BYTES]
        return max(self._note((first, name), workflow, context) for name in ("", agent))

    def _note(self, name: tuple[bytes, str], workflow: str, context: bytes) -> int:
        latest = self._latest.pop(name, None)
        if latest is None:
            latest = _Latest(workflow, b"")
            self.size_bytes += _size_bytes(name)
        elif latest.workflow != workflow:
            latest.workflow, latest.shared = workflow, common(context, latest.context)
        self.size_bytes += len(context) - len(latest.context)
        latest.context = context
        self._latest[name] = latest
        while self.size_bytes > self._capacity_bytes and len(self._latest) > 1:
            oldest_name, oldest = self._latest.popitem(last=False)
            self.size_bytes -= _size_bytes(oldest_name) + len(oldest.context)
        return min(latest.shared, len(context) // KEY_BYTES)


def common(one: bytes, other: bytes) -> int:
    """Blocks that two contexts share from the start, by bisection: a key covers all blocks before its own."""
    low, high = 0, min(len(one), len(other)) // KEY_BYTES
    while low < high:
        middle = (low + high + 1) // 2
        start, stop = (middle - 1) * KEY_BYTES, middle * KEY_BYTES
        if one[start:stop] == other[start:stop]:
            low = middle
        else:
            high = middle - 1
    return low


def _size_bytes(name: tuple[bytes, str]) -> int:
    return _ENTRY_BYTES + 4 * len(name[1])
