"""The workers that steps can go to: found in the directory, one channel per incarnation, watched for loss.

A worker that a step has lost is *suspect*: it gets no steps until it answers a probe. So a dead process costs one step a
retry, not every step, and a worker that only lost its connection is back at the next poll.

A worker on a node that is drained gets no steps either, unless there is no other; those that run there go on.

A directory that is suddenly empty is not believed for the duration of one lease: a Redis that restarts comes back empty, and
the workers, which are all well, take a moment to announce themselves again.
"""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

from pbkv_cluster.core.background import wait_for
from pbkv_cluster.core.blocks import Namespace
from pbkv_cluster.core.clock import Clock
from pbkv_cluster.core.errors import Unavailable
from pbkv_cluster.gateway.routing.worker import Worker, key_of
from pbkv_cluster.store.block_map import WorkerKey
from pbkv_cluster.store.cluster_index import Directory, NodeState

_POLL_S = 0.5


@dataclass(frozen=True, slots=True)
class ModelLimits:
    """What the served model can take."""

    namespaces: Sequence[Namespace]  # of the workers' blocks, without a tenant; one for each engine
    vocab_size: int
    max_context_tokens: int  # prompt and output together


class WorkerPool:
    """The workers of the cluster, as the directory lists them."""

    def __init__(self, directory: Directory, clock: Clock) -> None:
        self._directory = directory
        self._clock = clock
        self._empty_since: float | None = None  # on the clock's `now`; None while the directory lists a worker
        self._workers: dict[WorkerKey, Worker] = {}
        self._draining: frozenset[str] = frozenset()  # ids of nodes
        self._leaving: set[Worker] = set()  # gone from the directory; may still run steps
        self._poll_now = asyncio.Event()
        self._changed = asyncio.Event()
        self.index_reachable = False  # Redis answered the last call

    def live(self) -> list[Worker]:
        """Workers that steps can go to now."""
        live = [worker for worker in self._workers.values() if not worker.suspect]
        return [worker for worker in live if worker.entry.node_id not in self._draining] or live

    def known(self) -> list[Worker]:
        """Every worker in the directory, suspects included."""
        return list(self._workers.values())

    def limits(self) -> ModelLimits | None:
        """What the model takes according to its workers; None while there are none."""
        entries = [worker.entry for worker in self._workers.values()]
        if not entries:
            return None
        return ModelLimits(
            tuple(dict.fromkeys(entry.namespace for entry in entries)),
            min(entry.vocab_size for entry in entries),
            min(entry.max_context_tokens for entry in entries),
        )

    def changed(self) -> asyncio.Event:
        """Set when a worker joins, leaves or recovers; ask for a new event after each time."""
        return self._changed

    def lost(self, worker: Worker) -> None:
        """Notes that a step lost its connection to `worker`."""
        worker.suspect = True
        self.poll_soon()

    def index_lost(self) -> None:
        """Notes that the index did not answer; it counts as away until a poll finds it back."""
        self.index_reachable = False

    def poll_soon(self) -> None:
        self._poll_now.set()

    def release(self, worker: Worker, step: object) -> None:
        """Notes that `step` is no longer on `worker`. Harmless when repeated."""
        worker.steps.discard(step)
        if worker in self._leaving and not worker.steps:
            self.poll_soon()

    async def run(self) -> None:
        """Keeps the pool up to date, for ever."""
        while True:
            self._poll_now.clear()
            await self.refresh()
            await self._probe_suspects()
            await self._close_left()
            await wait_for(self._poll_now, _POLL_S)

    async def refresh(self) -> None:
        """Takes over the directory's present state. While the directory is away, the known workers stay."""
        try:
            entries = {key_of(entry): entry for entry in await self._directory.workers()}
            states = await self._directory.node_states()
        except Unavailable:
            self.index_reachable = False
            return
        self.index_reachable = True
        self._draining = frozenset(each.node_id for each in states if each.state is NodeState.DRAINING)
        if not entries and not self._overdue():
            return
        left, joined = self._workers.keys() - entries.keys(), entries.keys() - self._workers.keys()
        # Workers that have left may still finish their steps: the lease of a worker that is only slow may lapse.
        self._leaving.update(self._workers.pop(key) for key in left)
        for key in sorted(joined):
            self._workers[key] = Worker.open(entries[key], self._clock)
        if entries:
            self._empty_since = None
        if joined:
            self._notify()

    def _overdue(self) -> bool:
        """Whether the directory has been empty for long enough to believe it."""
        now = self._clock.now()
        self._empty_since = now if self._empty_since is None else self._empty_since
        return now - self._empty_since > self._directory.ttl_s

    async def close(self) -> None:
        for worker in [*self._workers.values(), *self._leaving]:
            await worker.close()
        self._workers.clear()
        self._leaving.clear()

    async def _close_left(self) -> None:
        for worker in [each for each in self._leaving if each.idle]:
            self._leaving.discard(worker)
            await worker.close()

    async def _probe_suspects(self) -> None:
        suspects = [worker for worker in self._workers.values() if worker.suspect]
        if suspects:
            await asyncio.gather(*map(self._probe, suspects))

    async def _probe(self, worker: Worker) -> None:
        if await worker.probe():
            worker.suspect = False
            self._notify()

    def _notify(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()
