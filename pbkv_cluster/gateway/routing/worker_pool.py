"""The workers that steps can go to: found in the directory, one channel for each incarnation, watched for loss.

A worker that a step has lost is *suspect*: it gets no steps until it answers a probe, so that one dead process costs one
step a retry and not each of them, while one that only lost its connection is back within a poll.

A directory that is suddenly empty is not believed for one lease: a Redis that restarts comes back empty, and the workers, all
well, take a moment to announce themselves again.
"""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from grpc import aio

from pbkv_cluster.core.background import wait_for
from pbkv_cluster.core.clock import Clock
from pbkv_cluster.core.errors import Unavailable
from pbkv_cluster.core.ewma import Ewma
from pbkv_cluster.gateway.routing.speeds import WEIGHT
from pbkv_cluster.gateway.step.prompts import Limits
from pbkv_cluster.rpc.channel import connect
from pbkv_cluster.rpc.v1 import worker_pb2, worker_pb2_grpc
from pbkv_cluster.store.cluster_index import Directory, WorkerEntry

if TYPE_CHECKING:
    from pbkv_cluster.rpc.v1.worker_pb2_grpc import WorkerServiceAsyncStub

_POLL_S = 0.5
_PROBE_TIMEOUT_S = 1.0

Key = tuple[str, str]  # worker id, incarnation


@dataclass(eq=False, slots=True)
class Worker:
    """One incarnation of a worker."""

    record: WorkerEntry
    channel: aio.Channel
    stub: "WorkerServiceAsyncStub"
    steps: set[object] = field(default_factory=set)  # in flight from this gateway
    step_s: Ewma = field(default_factory=lambda: Ewma(WEIGHT, initial=0.0))
    suspect: bool = False
    calls: int = 0  # short calls under way
    closed: bool = False  # its channel is, or is about to be

    @property
    def id(self) -> str:
        return self.record.worker_id

    @property
    def key(self) -> Key:
        return key_of(self.record)

    @contextmanager
    def calling(self) -> Iterator["WorkerServiceAsyncStub"]:
        """The stub for a short call. NOTE: closing a channel cancels the calls on it, and with them whoever awaits one.

        Raises:
            Unavailable: the worker has left.
        """
        if self.closed:
            raise Unavailable(f"worker {self.id} has left")
        self.calls += 1
        try:
            yield self.stub
        finally:
            self.calls -= 1

    async def close(self) -> None:
        self.closed = True
        await self.channel.close()


def key_of(record: WorkerEntry) -> Key:
    return record.worker_id, record.incarnation


class WorkerPool:
    """The workers of the cluster, as the directory has them."""

    def __init__(self, directory: Directory, clock: Clock) -> None:
        self._directory = directory
        self._clock = clock
        self._empty_since: float | None = None  # on the clock's `now`; None while the directory lists anyone
        self._workers: dict[Key, Worker] = {}
        self._leaving: set[Worker] = set()  # forgotten, with steps perhaps still running
        self._poll_now = asyncio.Event()
        self._changed = asyncio.Event()
        self.index_reachable = False  # Redis answered last time

    def live(self) -> list[Worker]:
        """Workers that steps can go to now."""
        return [worker for worker in self._workers.values() if not worker.suspect]

    def known(self) -> list[Worker]:
        """Every worker in the directory, suspects included."""
        return list(self._workers.values())

    def limits(self) -> Limits | None:
        """What the model takes, as its workers tell; None while there are none."""
        records = [worker.record for worker in self._workers.values()]
        if not records:
            return None
        return Limits(
            records[0].namespace,
            min(record.vocab_size for record in records),
            min(record.max_context_tokens for record in records),
        )

    def changed(self) -> asyncio.Event:
        """Set when a worker comes, goes or recovers; ask again after each time."""
        return self._changed

    def lost(self, worker: Worker) -> None:
        """A step lost its connection to `worker`."""
        worker.suspect = True
        self.poll_soon()

    def index_lost(self) -> None:
        """The index did not answer; it counts as away until a poll finds it back."""
        self.index_reachable = False

    def poll_soon(self) -> None:
        self._poll_now.set()

    def release(self, worker: Worker, step: object) -> None:
        """`step` is no longer on `worker`. Harmless when repeated."""
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
        """Takes the directory's present state. While it is away, the workers known stay."""
        try:
            records = {key_of(record): record for record in await self._directory.workers()}
        except Unavailable:
            self.index_reachable = False
            return
        self.index_reachable = True
        if not records and not self._overdue():
            return
        gone, come = self._workers.keys() - records.keys(), records.keys() - self._workers.keys()
        # Those that are gone may still finish their steps: a lease may lapse under a worker that is only slow.
        self._leaving.update(self._workers.pop(key) for key in gone)
        for key in sorted(come):
            channel = connect(records[key].address)
            self._workers[key] = Worker(records[key], channel, worker_pb2_grpc.WorkerServiceStub(channel))
        if records:
            self._empty_since = None
        if come:
            self._tell()

    def _overdue(self) -> bool:
        """Whether the directory has been empty for long enough to believe it."""
        now = self._clock.now()
        self._empty_since = now if self._empty_since is None else self._empty_since
        return now - self._empty_since > self._directory.lease_s

    async def close(self) -> None:
        for worker in [*self._workers.values(), *self._leaving]:
            await worker.close()
        self._workers.clear()
        self._leaving.clear()

    async def _close_left(self) -> None:
        for worker in [each for each in self._leaving if not each.steps and not each.calls]:
            self._leaving.discard(worker)
            await worker.close()

    async def _probe_suspects(self) -> None:
        suspects = [worker for worker in self._workers.values() if worker.suspect]
        if suspects:
            await asyncio.gather(*map(self._probe, suspects))

    async def _probe(self, worker: Worker) -> None:
        try:
            with worker.calling() as stub:
                await stub.GetWorkerStatus(worker_pb2.GetWorkerStatusRequest(), timeout=_PROBE_TIMEOUT_S)
        except (aio.AioRpcError, Unavailable):
            return
        worker.suspect = False
        self._tell()

    def _tell(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()
