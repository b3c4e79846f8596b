"""Where the contexts of a workflow's agents lie: what its next steps find again if it stays, and leaves behind if it moves.

An agent's context is the prompt and output of its latest step. The worker that ran the step may have evicted some of it since.
"""

from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

from pbkv_cluster.core.tokens import BLOCK_TOKENS
from pbkv_cluster.store.block_map import WorkerKey

CAPACITY_BYTES = 64 << 20  # of the keys of all workflows
_KEY_BYTES = 8  # of each block key: they are compared within one workflow
_AGENTS = 16  # of a workflow whose contexts are kept, those that ran last


class _Context(NamedTuple):
    worker: WorkerKey
    keys: bytes  # of its blocks, from the start


class Contexts:
    """The contexts of open workflows. Beyond a bound, those of the workflows silent for longest are dropped."""

    def __init__(self, capacity_bytes: int = CAPACITY_BYTES) -> None:
        """Args:
        capacity_bytes: of the keys that are kept.
        """
        self._capacity_bytes = capacity_bytes
        self._workflows: OrderedDict[str, OrderedDict[str, _Context]] = OrderedDict()  # contexts by agent
        self.size_bytes = 0

    def note(self, workflow: str, agent: str, worker: WorkerKey, keys: Iterable[bytes]) -> None:
        """An agent's latest step runs, or has run, on a worker.

        Args:
            workflow: its id.
            agent: of the workflow.
            worker: its key; another incarnation has lost what lay on the GPU.
            keys: of the full blocks of the step's prompt, and of its output once that is known.
        """
        contexts = self._workflows.setdefault(workflow, OrderedDict())
        self._workflows.move_to_end(workflow)
        self._remove(contexts, agent)
        contexts[agent] = context = _Context(worker, b"".join(key[:_KEY_BYTES] for key in keys))
        self.size_bytes += len(context.keys)
        if len(contexts) > _AGENTS:
            self._remove(contexts, next(iter(contexts)))
        while self.size_bytes > self._capacity_bytes and len(self._workflows) > 1:
            self.drop(next(iter(self._workflows)))

    def drop(self, workflow: str) -> None:
        """Forgets a workflow."""
        contexts = self._workflows.pop(workflow, None)
        if contexts is not None:
            self.size_bytes -= sum(len(context.keys) for context in contexts.values())

    def tokens(
        self, workflow: str, keys: Mapping[WorkerKey, Sequence[bytes]], weight: Callable[[str], float] = lambda agent: 1.0
    ) -> dict[WorkerKey, int]:
        """Tokens of other contexts of a workflow that lie on each worker, beyond what they share with a prompt.

        Blocks that several contexts share count once, and blocks of the prompt not at all: they will lie where its step runs.

        Args:
            workflow: its id.
            keys: of the prompt's full blocks, on each worker that matters.
            weight: for how much an agent's context counts; 1 if it is read again with `router.REUSE_PROBABILITY`.
        """
        found: dict[WorkerKey, int] = {}
        counted: dict[WorkerKey, list[bytes]] = {}
        for agent, (worker, blocks) in self._workflows.get(workflow, OrderedDict[str, _Context]()).items():
            if worker not in keys:
                continue
            if (others := counted.get(worker)) is None:
                others = counted[worker] = [b"".join(key[:_KEY_BYTES] for key in keys[worker])]
            shared = max(_common(blocks, other) for other in others)
            others.append(blocks)
            new = (len(blocks) // _KEY_BYTES - shared) * BLOCK_TOKENS
            found[worker] = found.get(worker, 0) + round(new * weight(agent))
        return found

    def _remove(self, contexts: OrderedDict[str, _Context], agent: str) -> None:
        context = contexts.pop(agent, None)
        if context is not None:
            self.size_bytes -= len(context.keys)


def _common(one: bytes, other: bytes) -> int:
    """Blocks that two paths share, by bisection."""
    low, high = 0, min(len(one), len(other)) // _KEY_BYTES
    while low < high:
        middle = (low + high + 1) // 2
        start, stop = low * _KEY_BYTES, middle * _KEY_BYTES
        if one[start:stop] == other[start:stop]:
            low = middle
        else:
            high = middle - 1
    return low
