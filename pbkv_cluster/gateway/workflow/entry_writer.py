"""Workflow records in the directory, by which a gateway that restarts finds the open workflows again.

The start and the end of a workflow are written before the call returns, what happens between beside the steps. While the
directory is away nothing fails: the writes wait, the latest for each workflow, and are made up for when it is back. Every
write holds the whole record, so a directory that came back empty fills up again.
"""

import asyncio
from collections.abc import AsyncIterator

from pbkv_cluster.core.clock import Clock
from pbkv_cluster.core.errors import NotFound, Unavailable
from pbkv_cluster.gateway.decisions import Decisions, Reason
from pbkv_cluster.gateway.workflow.sessions import Session
from pbkv_cluster.store.cluster_index import Directory, WorkflowEntry

_RETRY_S = 0.25
_GATHER_S = 0.02  # what happens to a workflow within this time is one write, and no step waits for it


class EntryWriter:
    """Writes records one after the other, so that an older write never overtakes a newer one."""

    def __init__(self, directory: Directory, decisions: Decisions, clock: Clock, capacity: int) -> None:
        """Args:
        capacity: writes that may wait; beyond, the oldest are given up (the record's lease then removes it).
        """
        self._directory = directory
        self._decisions = decisions
        self._clock = clock
        self._capacity = capacity
        self._waiting: dict[str, Session] = {}
        self._news = asyncio.Event()
        self._turn = asyncio.Lock()
        self._away = False

    async def write(self, session: Session) -> None:
        """Writes a session's record, or removes it if the session has ended; later if the directory is away."""
        self.note(session)
        if self._away:
            self._decisions[Reason.RECORD_DEFERRED] += 1
        else:
            await self._flush(session.id)

    def note(self, session: Session) -> None:
        """Writes a session's record soon."""
        self._waiting[session.id] = session
        while len(self._waiting) > self._capacity:
            del self._waiting[next(iter(self._waiting))]
            self._decisions[Reason.RECORD_DROPPED] += 1
        self._news.set()

    async def find(self, workflow_id: str) -> WorkflowEntry:
        """The record of a workflow that this process does not know.

        Raises:
            NotFound: there is no such workflow, or no longer.
            Unavailable: the directory cannot be asked.
        """
        # In turn with the writes, so that a workflow whose removal is under way is not found once more.
        async with self._turn:
            waiting = self._waiting.get(workflow_id)
            if waiting is not None and waiting.ended:
                record = None
            elif self._away:
                raise Unavailable(f"whether workflow {workflow_id!r} is open cannot be looked up: the directory is away")
            else:
                record = await self._directory.workflow(workflow_id)
        if record is None:
            raise NotFound(f"workflow {workflow_id!r} is not open: it was never started, has ended, or its lease is over")
        return record

    def records(self) -> AsyncIterator[WorkflowEntry]:
        """The records of all open workflows; Unavailable while the directory cannot be asked."""
        return self._directory.workflows()

    async def run(self) -> None:
        """Makes the writes that wait, for ever."""
        while True:
            await self._news.wait()
            await asyncio.sleep(_GATHER_S)
            self._news.clear()
            while self._waiting:
                await self._flush(next(iter(self._waiting)))
                if self._away:
                    await asyncio.sleep(_RETRY_S)

    async def _flush(self, workflow_id: str) -> None:
        async with self._turn:
            session = self._waiting.pop(workflow_id, None)
            if session is None:
                return
            session.recorded_at = self._clock.now()
            try:
                if session.ended:
                    await self._directory.remove_workflow(session.id)
                else:
                    await self._directory.put_workflow(_record(session))
            except asyncio.CancelledError:
                self._put_back(session)
                raise
            except Unavailable:
                self._put_back(session)
                self._away = True
                self._decisions[Reason.RECORD_DEFERRED] += 1
            else:
                self._away = False

    def _put_back(self, session: Session) -> None:
        self._waiting.setdefault(session.id, session)
        self._news.set()


def _record(session: Session) -> WorkflowEntry:
    return WorkflowEntry(
        session.id,
        session.workload,
        session.tenant,
        session.lease_s,
        session.started_at,
        session.steps,
        session.step_graph,
    )
