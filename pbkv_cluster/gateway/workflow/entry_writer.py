"""Entries of workflows in the directory, from which gateways find the workflows that another one, now gone, has held.

An entry names the gateway that holds the workflow. Every write is a compare-and-set: it succeeds only while that gateway is the
one that writes, or the one that the workflow is taken from. A refused write tells a gateway that it has lost the workflow.

The start and the end of a workflow are written before the call returns; changes in between are written in the background.
While the directory is away nothing fails: the latest write for each workflow waits until it is back. Every write holds the
whole entry. A directory that has lost entries is given those of all open workflows again, since the one that says nothing for
a while, in a long step or tool call, would else be lost with its gateway.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from dataclasses import replace
from itertools import islice

from pbkv_cluster.core.clock import Clock
from pbkv_cluster.core.errors import NotFound, Unavailable
from pbkv_cluster.gateway.decisions import Decisions, Reason
from pbkv_cluster.gateway.peers.peers import Peers
from pbkv_cluster.gateway.workflow.open_workflows import OpenWorkflow
from pbkv_cluster.store.cluster_index import Directory, WorkflowEntry

_RETRY_S = 0.25
_WATCH_S = 1.0
_GATHER_S = 0.02  # changes of a workflow within this time are one write
_TOGETHER = 64  # writes that are sent together


def not_open(workflow_id: str) -> str:
    """What a caller is told of a workflow that is not open, or not for that caller, who is not to learn which."""
    return f"workflow {workflow_id!r} is not open: it was never started, has ended, or its lease is over"


class EntryWriter:
    """Writes entries one after the other, so that an older write never overtakes a newer one."""

    def __init__(self, directory: Directory, peers: Peers, decisions: Decisions, clock: Clock, capacity: int) -> None:
        """Args:
        directory: that of the cluster.
        peers: know which gateway this is.
        decisions: counts what is written later, or never.
        clock: for the times of writes.
        capacity: writes that may wait; beyond it the oldest are dropped (the entry then expires with its lease).
        """
        self._directory = directory
        self._peers = peers
        self.on_moved: Callable[[OpenWorkflow], None] = lambda workflow: None  # a workflow is held by another gateway now
        self._decisions = decisions
        self._clock = clock
        self._capacity = capacity
        self._waiting: dict[str, OpenWorkflow] = {}
        self._wake = asyncio.Event()  # writes wait
        self._turn = asyncio.Lock()  # of a write
        self._in_flight: dict[str, OpenWorkflow] = {}  # what is being written
        self._away = False  # the directory did not answer the last write

    async def write(self, workflow: OpenWorkflow) -> None:
        """Writes a workflow's entry, or removes it if the workflow has ended; later if the directory is away."""
        self.write_soon(workflow)
        if self._away:
            self._decisions[Reason.RECORD_DEFERRED] += 1
        else:
            await self._flush([workflow.id])

    def write_soon(self, workflow: OpenWorkflow) -> None:
        """Has a workflow's entry written soon."""
        self._waiting[workflow.id] = workflow
        while len(self._waiting) > self._capacity:
            del self._waiting[next(iter(self._waiting))]
            self._decisions[Reason.RECORD_DROPPED] += 1
        self._wake.set()

    async def find(self, workflow_id: str) -> WorkflowEntry:
        """The entry of a workflow that is not open in this process.

        Raises:
            NotFound: there is no such workflow, or it has ended.
            Unavailable: the directory does not answer.
        """
        # A workflow whose removal waits or is in flight is not to be found once more.
        written = self._waiting.get(workflow_id) or self._in_flight.get(workflow_id)
        if written is not None and written.ended and not written.moved:
            raise NotFound(not_open(workflow_id))
        if self._away:
            raise Unavailable(f"whether workflow {workflow_id!r} is open cannot be looked up: the directory is away")
        entry = await self._directory.workflow(workflow_id)
        if entry is None:
            raise NotFound(not_open(workflow_id))
        return entry

    async def holds(self, workflow: OpenWorkflow) -> bool:
        """Whether this gateway still holds a workflow, as far as the directory tells."""
        if workflow.ended:
            return False
        try:
            entry = await self._directory.workflow(workflow.id)
        except Unavailable:
            return True
        if entry is not None and entry.holder != self._peers.me:
            self.on_moved(workflow)
        return not workflow.ended

    async def take_over(self, entry: WorkflowEntry) -> WorkflowEntry | None:
        """Makes this gateway the holder of a workflow. Returns the new entry; None if another was faster, or it has ended.

        Raises:
            Unavailable: the directory does not answer.
        """
        taken = replace(entry, holder=self._peers.me, taken=entry.taken + 1)
        return taken if await self._directory.take_workflow(taken, entry.holder) else None

    def entries(self) -> AsyncIterator[WorkflowEntry]:
        """The entries of all open workflows. Iterating raises Unavailable while the directory does not answer."""
        return self._directory.workflows()

    async def run(self) -> None:
        """Makes the writes that wait, for ever."""
        while True:
            await self._wake.wait()
            await asyncio.sleep(_GATHER_S)
            self._wake.clear()
            while self._waiting:
                await self._flush(list(islice(self._waiting, _TOGETHER)))
                if self._away:
                    await asyncio.sleep(_RETRY_S)

    async def watch(self, all_open: Callable[[], Iterable[OpenWorkflow]]) -> None:
        """Writes the entries of all open workflows again whenever the directory has lost any, for ever."""
        written, number = "", 0
        while True:
            number += 1
            try:
                before = await self._directory.exchange_stamp(self._peers.me.incarnation, str(number))
            except Unavailable:
                written = "unknown"  # it may have been written or not; and a directory that was away may have lost anything
            else:
                if before != written:
                    self._decisions[Reason.RECORDS_REWRITTEN] += 1
                    for workflow in list(all_open()):
                        self.write_soon(workflow)
                written = str(number)
            await asyncio.sleep(_WATCH_S)

    async def _flush(self, workflow_ids: Sequence[str]) -> None:
        async with self._turn:
            taken = [self._waiting.pop(each, None) for each in workflow_ids]
            workflows = [each for each in taken if each is not None and not each.moved]
            if not workflows:
                return
            for workflow in workflows:
                workflow.written_at = self._clock.now()
            self._in_flight = {each.id: each for each in workflows}
            try:
                await self._write(workflows)
            except asyncio.CancelledError:
                self._put_back(workflows)
                raise
            except Unavailable:
                self._put_back(workflows)
                self._away = True
                self._decisions[Reason.RECORD_DEFERRED] += len(workflows)
            else:
                self._away = False
            finally:
                self._in_flight = {}

    async def _write(self, workflows: Sequence[OpenWorkflow]) -> None:
        still_open = [each for each in workflows if not each.ended]
        for workflow in workflows:
            if workflow.ended:
                await self._directory.remove_workflow(workflow.id, self._peers.me)
        if still_open:
            held = await self._directory.renew_workflows([self._entry(each) for each in still_open])
            for workflow in (each for each, is_held in zip(still_open, held, strict=True) if not is_held):
                self.on_moved(workflow)

    def _put_back(self, workflows: Sequence[OpenWorkflow]) -> None:
        for workflow in workflows:
            self._waiting.setdefault(workflow.id, workflow)
        self._wake.set()

    def _entry(self, workflow: OpenWorkflow) -> WorkflowEntry:
        return WorkflowEntry(
            workflow.id,
            self._peers.me,
            workflow.taken,
            workflow.workload,
            workflow.tenant,
            workflow.lease_s,
            workflow.started_at,
            workflow.steps,
            workflow.step_graph,
        )
