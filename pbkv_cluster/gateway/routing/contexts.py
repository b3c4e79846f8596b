"""Where the contexts of workflows' agents lie: what next steps find again where they are, and how much room is left.

An agent's context is the prompt and output of its latest step. The worker that ran the step may have evicted some of it since.
The start that an agent's contexts share between workflows is needed wherever the agent runs. What a workflow's contexts have
beside it are its **own tokens**: they take memory from other workflows wherever it goes on.
"""

from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from pbkv_cluster.core.ewma import Ewma
from pbkv_cluster.core.tokens import BLOCK_TOKENS
from pbkv_cluster.gateway.routing.router import KnownContexts
from pbkv_cluster.gateway.routing.shared_starts import KEY_BYTES, SharedStarts, common
from pbkv_cluster.store.block_map import WorkerKey

CAPACITY_BYTES = 64 << 20  # of the keys of all workflows
_STARTS_SHARE = 4  # one part in so many of that is kept of agents, in addition
_AGENTS = 16  # of a workflow whose contexts are kept, those that ran last
_ENDED_WEIGHT = 0.1  # of the workflow that ended last, in the mean of own tokens


class _Context(NamedTuple):
    worker: WorkerKey
    keys: bytes  # of its blocks, from the start, `KEY_BYTES` of each: they are compared within one workflow
    shared: int  # blocks at the start that other workflows have, too


@dataclass(slots=True)
class _Workflow:
    contexts: OrderedDict[str, _Context] = field(default_factory=OrderedDict)  # by agent
    own: dict[WorkerKey, int] = field(default_factory=dict)  # blocks of its own, by the worker where they lie


class Contexts:
    """The contexts of open workflows. Beyond a bound, those of the workflows silent for longest are dropped."""

    def __init__(self, capacity_bytes: int = CAPACITY_BYTES) -> None:
        """Args:
        capacity_bytes: of the keys that are kept.
        """
        self._capacity_bytes = capacity_bytes
        self._workflows: OrderedDict[str, _Workflow] = OrderedDict()
        self._own = Counter[WorkerKey]()  # blocks that are some workflow's own
        self._starts = SharedStarts(capacity_bytes // _STARTS_SHARE)
        self._mean_own = Ewma(_ENDED_WEIGHT, initial=0.0)  # blocks of a workflow at its end
        self.size_bytes = 0

    def note(self, workflow: str, agent: str, worker: WorkerKey, keys: Iterable[bytes]) -> None:
        """An agent's latest step runs, or has run, on a worker.

        Args:
            workflow: its id.
            agent: of the workflow.
            worker: its key; another incarnation has lost what lay on the GPU.
            keys: of the full blocks of the step's prompt, and of its output once that is known.
        """
        found = self._workflows.setdefault(workflow, _Workflow())
        self._workflows.move_to_end(workflow)
        before = self._remove(found, agent)
        blocks = b"".join(key[:KEY_BYTES] for key in keys)
        found.contexts[agent] = _Context(worker, blocks, self._starts.note(workflow, agent, blocks))
        self.size_bytes += len(blocks)
        dropped = self._remove(found, next(iter(found.contexts))) if len(found.contexts) > _AGENTS else None
        for each in {worker, before, dropped}:
            if each is not None:
                self._count_own(found, each)
        while self.size_bytes > self._capacity_bytes and len(self._workflows) > 1:
            self._forget(next(iter(self._workflows)))

    def drop(self, workflow: str) -> None:
        """A workflow has ended: forgets it, but not how many tokens were its own."""
        if (own := self._forget(workflow)) is not None:
            self._mean_own.add(own)

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

    def known(
        self, workflow: str, keys: Mapping[WorkerKey, Sequence[bytes]], weight: Callable[[str], float] = lambda agent: 1.0
    ) -> KnownContexts:
        """What the placement of a workflow's step has to know; the arguments are those of `tokens`."""
        return KnownContexts(
            of_workflow=self.tokens(workflow, keys, weight),
            own=self.own_tokens(workflow),
            has_begun=workflow in self._workflows,
            others={worker: self.others_tokens(workflow, worker) for worker in keys},
        )

    def own_tokens(self, workflow: str) -> int:
        """Tokens of its own that a workflow has or, if that is more, that those which ended lately had in the mean."""
        found = self._workflows.get(workflow)
        blocks = 0 if found is None else sum(found.own.values())
        return round(max(blocks, self._mean_own.value)) * BLOCK_TOKENS

    def others_tokens(self, workflow: str, worker: WorkerKey) -> int:
        """Tokens on a worker that are other open workflows' own."""
        found = self._workflows.get(workflow)
        blocks = self._own[worker] - (0 if found is None else found.own.get(worker, 0))
        return blocks * BLOCK_TOKENS

    def _forget(self, workflow: str) -> int | None:
        """Returns how many blocks were its own; None: it is not known."""
        found = self._workflows.pop(workflow, None)
        if found is None:
            return None
        self.size_bytes -= sum(len(context.keys) for context in found.contexts.values())
        for worker, blocks in found.own.items():
            self._add_own(worker, -blocks)
        return sum(found.own.values())

    def _remove(self, workflow: _Workflow, agent: str) -> WorkerKey | None:
        """Returns where the agent's context lay; None: it had none."""
        context = workflow.contexts.pop(agent, None)
        if context is None:
            return None
        self.size_bytes -= len(context.keys)
        return context.worker

    def _count_own(self, workflow: _Workflow, worker: WorkerKey) -> None:
        blocks, seen = 0, list[bytes]()
        for context in workflow.contexts.values():
            if context.worker == worker:
                shared = max((common(context.keys, other) for other in seen), default=0)
                blocks += len(context.keys) // KEY_BYTES - max(shared, context.shared)
                seen.append(context.keys)
        self._add_own(worker, blocks - workflow.own.pop(worker, 0))
        if blocks:
            workflow.own[worker] = blocks

    def _add_own(self, worker: WorkerKey, blocks: int) -> None:
        self._own[worker] += blocks
        if not self._own[worker]:
            del self._own[worker]
