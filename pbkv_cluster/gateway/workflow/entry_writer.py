"""Entries of workflows in the directory, from which a gateway that restarts finds the open workflows again.

The start and the end of a workflow are written before the call returns; changes in between are written in the background.
While the directory is away nothing fails: the latest write for each workflow waits until it is back. Every write holds the
whole entry, so a directory that comes back empty fills up again.
"""

import asyncio
from collections.abc import AsyncIterator

from pbkv_cluster.core.clock import Clock
from pbkv_cluster.core.errors import NotFound, Unavailable
from pbkv_cluster.gateway.decisions import Decisions, Reason
from pbkv_cluster.gateway.workflow.open_workflows import OpenWorkflow
from pbkv_cluster.store.cluster_index import Directory, WorkflowEntry

_RETRY_S = 0.25
_GATHER_S = 0.02  # changes of a workflow within this time are one write


class EntryWriter:
    """Writes entries one after the other, so that an older write never overtakes a newer one."""

    def __init__(self, directory: Directory, decisions: Decisions, clock: Clock, capacity: int) -> None:
        """Args:
        capacity: writes that may wait; beyond it the oldest are dropped (the entry then expires with its lease).
        """
        self._directory = directory
        self._decisions = decisions
        self._clock = clock
        self._capacity = capacity
        self._waiting: dict[str, OpenWorkflow] = {}
        self._wake = asyncio.Event()  # writes wait
        self._turn = asyncio.Lock()
        self._away = False  # the directory did not answer the last write

    async def write(self, workflow: OpenWorkflow) -> None:
        """Writes a workflow's entry, or removes it if the workflow has ended; later if the directory is away."""
        self.write_soon(workflow)
        if self._away:
            self._decisions[Reason.RECORD_DEFERRED] += 1
        else:
            await self._flush(workflow.id)

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
        # Takes its turn with the writes, so that a workflow whose removal is in flight is not found once more.
        async with self._turn:
            waiting = self._waiting.get(workflow_id)
            if waiting is not None and waiting.ended:
                entry = None
            elif self._away:
                raise Unavailable(f"whether workflow {workflow_id!r} is open cannot be looked up: the directory is away")
            else:
                entry = await self._directory.workflow(workflow_id)
        if entry is None:
            raise NotFound(f"workflow {workflow_id!r} is not open: it was never started, has ended, or its lease is over")
        return entry

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
                await self._flush(next(iter(self._waiting)))
                if self._away:
                    await asyncio.sleep(_RETRY_S)

    async def _flush(self, workflow_id: str) -> None:
        async with self._turn:
            workflow = self._waiting.pop(workflow_id, None)
            if workflow is None:
                return
            workflow.written_at = self._clock.now()
            try:
                if workflow.ended:
                    await self._directory.remove_workflow(workflow.id)
                else:
                    await self._directory.put_workflow(_entry(workflow))
            except asyncio.CancelledError:
                self._put_back(workflow)
                raise
            except Unavailable:
                self._put_back(workflow)
                self._away = True
                self._decisions[Reason.RECORD_DEFERRED] += 1
            else:
                self._away = False

    def _put_back(self, workflow: OpenWorkflow) -> None:
        self._waiting.setdefault(workflow.id, workflow)
        self._wake.set()


def _entry(workflow: OpenWorkflow) -> WorkflowEntry:
    return WorkflowEntry(
        workflow.id,
        workflow.workload,
        workflow.tenant,
        workflow.lease_s,
        workflow.started_at,
        workflow.steps,
        workflow.step_graph,
    )
