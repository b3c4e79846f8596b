"""Where the contexts of workflows' agents lie: what next steps find again where they are, and how much room is left.

An agent's context is the prompt and output of its latest step. The worker that ran the step may have evicted some of it since.
The start that an agent's contexts share between workflows is needed wherever the agent runs. What a workflow's contexts have
beside it are its **own tokens**: they take memory from other workflows wherever it goes on. A workflow is expected to become
as large as those were, at their ends, that began with the same agent.
"""

from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import NamedTuple

from pbkv_cluster.core.tokens import BLOCK_TOKENS
from pbkv_cluster.gateway.routing.router import KnownContexts
from pbkv_cluster.gateway.routing.shared_starts import KEY_BYTES, SharedStarts, common
from pbkv_cluster.gateway.routing.workflow_sizes import WorkflowSizes
from pbkv_cluster.store.block_map import WorkerKey

CAPACITY_BYTES = 64 << 20  # of the keys of all workflows
_STARTS_BYTES = 16 << 20  # of the starts that agents share, in addition
_AGENTS = 16  # of a workflow whose contexts are kept, those that ran last
# Workflows whose blocks are counted before a placement, beside its own. With one worker nothing is placed and none is counted;
# all that are open are waiting for it when a second worker comes.
_COUNTED_AT_ONCE = 64


class _Context(NamedTuple):
    worker: WorkerKey
    keys: bytes  # of its blocks, from the start, `KEY_BYTES` of each
    shared: int  # blocks at the start that other workflows have, too


@dataclass(slots=True)
class _Workflow:
    kind: str  # the agent that it began with
    contexts: OrderedDict[str, _Context] = field(default_factory=OrderedDict)  # by agent
    own: dict[WorkerKey, int] = field(default_factory=dict)  # blocks of its own, by the worker where they lie
    taken: dict[WorkerKey, int] = field(default_factory=dict)  # the same, and those to come where it ran last


class Contexts:
    """The contexts of open workflows. Beyond a bound, those of the workflows silent for longest are dropped."""

    def __init__(self, capacity_bytes: int = CAPACITY_BYTES) -> None:
        """Args:
        capacity_bytes: of the keys that are kept.
        """
        self._capacity_bytes = capacity_bytes
        self._workflows: OrderedDict[str, _Workflow] = OrderedDict()
        self._uncounted: dict[str, None] = {}  # those that have changed since their blocks were counted, as a set in order
        self._taken = Counter[WorkerKey]()  # of all workflows
        self._starts = SharedStarts(_STARTS_BYTES)
        self._sizes = WorkflowSizes()
        self.size_bytes = 0

    def note(self, workflow: str, agent: str, worker: WorkerKey, keys: Iterable[bytes]) -> None:
        """An agent's latest step runs, or has run, on a worker.

        Args:
            workflow: its id.
            agent: of the workflow.
            worker: its key; another incarnation has lost what lay on the GPU.
            keys: of the full blocks of the step's prompt, and of its output once that is known.
        """
        found = self._workflows.setdefault(workflow, _Workflow(agent))
        self._workflows.move_to_end(workflow)
        self._uncounted[workflow] = None
        self._remove(found, agent)
        blocks = b"".join(key[:KEY_BYTES] for key in keys)
        found.contexts[agent] = _Context(worker, blocks, self._starts.note(workflow, agent, blocks))
        self.size_bytes += len(blocks)
        if len(found.contexts) > _AGENTS:
            self._remove(found, next(iter(found.contexts)))
        while self.size_bytes > self._capacity_bytes and len(self._workflows) > 1:
            self.drop(next(iter(self._workflows)))

    def end(self, workflow: str) -> None:
        """A workflow has ended: forgets it, but not how large it has become."""
        if (found := self._workflows.get(workflow)) is not None:
            self._count(workflow)
            self._sizes.add(found.kind, sum(found.own.values()))
            self.drop(workflow)

    def drop(self, workflow: str) -> None:
        """Forgets a workflow: it goes on elsewhere, or there is no room."""
        if (found := self._workflows.pop(workflow, None)) is not None:
            self.size_bytes -= sum(len(context.keys) for context in found.contexts.values())
            self._uncounted.pop(workflow, None)
            self._taken.subtract(found.taken)
            self._taken += Counter()  # without those that have none

    def known(
        self,
        workflow: str,
        agent: str,
        keys: Mapping[WorkerKey, Sequence[bytes]],
        weight: Callable[[str], float] = lambda agent: 1.0,
    ) -> KnownContexts:
        """What the placement of a step has to know.

        Args:
            workflow: its id; empty: there is none.
            agent: that calls.
            keys: of the prompt's full blocks, on each worker that the step can go to.
            weight: as for `tokens`.
        """
        if not workflow:
            return KnownContexts()
        if workflow in self._uncounted:
            self._count(workflow)
        for each in tuple(islice(self._uncounted, _COUNTED_AT_ONCE)):
            self._count(each)
        found = self._workflows.get(workflow)
        own = self._sizes.expected(agent) if found is None else sum(found.own.get(worker, 0) for worker in keys)
        taken = {} if found is None else found.taken
        return KnownContexts(
            of_workflow=self.tokens(workflow, keys, weight),
            own=own * BLOCK_TOKENS,
            others={worker: (self._taken[worker] - taken.get(worker, 0)) * BLOCK_TOKENS for worker in keys},
        )

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
        if workflow not in self._workflows:
            return {}
        found: dict[WorkerKey, int] = {}
        counted: dict[WorkerKey, list[bytes]] = {}
        for agent, (worker, blocks, _) in self._workflows[workflow].contexts.items():
            if worker not in keys:
                continue
            if (others := counted.get(worker)) is None:
                others = counted[worker] = [b"".join(key[:KEY_BYTES] for key in keys[worker])]
            shared = max(common(blocks, other) for other in others)
            others.append(blocks)
            new = (len(blocks) // KEY_BYTES - shared) * BLOCK_TOKENS
            found[worker] = found.get(worker, 0) + round(new * weight(agent))
        return found

    def _remove(self, workflow: _Workflow, agent: str) -> None:
        context = workflow.contexts.pop(agent, None)
        if context is not None:
            self.size_bytes -= len(context.keys)

    def _count(self, workflow: str) -> None:
        self._uncounted.pop(workflow, None)
        found = self._workflows[workflow]
        found.own = {}
        seen: dict[WorkerKey, list[bytes]] = {}
        last = next(reversed(found.contexts.values())).worker
        for worker, keys, shared in found.contexts.values():
            others = seen.setdefault(worker, [])
            shared = max([shared, *(common(keys, other) for other in others)])
            others.append(keys)
            found.own[worker] = found.own.get(worker, 0) + len(keys) // KEY_BYTES - shared
        self._taken.subtract(found.taken)
        found.taken = dict(found.own)
        found.taken[last] += max(self._sizes.expected(found.kind) - sum(found.own.values()), 0)
        self._taken.update(found.taken)
