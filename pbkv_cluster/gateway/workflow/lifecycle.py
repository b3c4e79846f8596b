"""The life of workflows: started, found again, told about tools, ended by their clients or by their leases."""

import asyncio
import logging
import uuid
from collections.abc import Callable
from dataclasses import dataclass

from grpc import aio

from pbkv_cluster.core.clock import Clock
from pbkv_cluster.core.config import GatewayConfig
from pbkv_cluster.core.errors import InvalidArgument, NotFound, ResourceExhausted, Unavailable
from pbkv_cluster.core.events import EventKind, WorkflowEvent
from pbkv_cluster.core.step_graph import StepGraph
from pbkv_cluster.gateway import checks
from pbkv_cluster.gateway.decisions import Decisions, Reason
from pbkv_cluster.gateway.routing.worker_pool import Worker, WorkerPool
from pbkv_cluster.gateway.workflow.entry_writer import EntryWriter
from pbkv_cluster.gateway.workflow.sessions import Session, Sessions
from pbkv_cluster.rpc.v1 import worker_pb2, workflow_pb2
from pbkv_cluster.store.cluster_index import WorkflowEntry

log = logging.getLogger(__name__)

_LEASE_TICK_S = 0.25
_RETIRE_TIMEOUT_S = 2.0
_RECORD_SHARE = 0.25  # of a lease that may pass before the directory hears of a renewal


@dataclass(slots=True)
class Workflows:
    """Everything about workflows but their steps."""

    config: GatewayConfig
    sessions: Sessions
    journal: EntryWriter
    pool: WorkerPool
    emit: Callable[[WorkflowEvent], None]
    decisions: Decisions
    clock: Clock

    async def start(self, request: workflow_pb2.StartWorkflowRequest) -> Session:
        """Opens a workflow, or finds the open one of that id.

        Raises:
            InvalidArgument: a name is too long, the lease no duration or too short, the step graph is none, or the open
                workflow has another tenant or step graph.
            ResourceExhausted: too many workflows are open.
        """
        workflow_id = checks.name("workflow_id", request.workflow_id) or uuid.uuid4().hex
        session = Session(
            workflow_id,
            checks.name("workload", request.workload),
            checks.name("tenant", request.tenant),
            checks.lease("lease_s", request.lease_s) or self.config.workflow_lease_s,
            self.clock.wall(),
            self.clock.now(),
            step_graph=checks.step_graph(request.step_graph) if request.HasField("step_graph") else None,
        )
        if request.workflow_id:
            try:
                return _same(await self.find(workflow_id), session)
            except (NotFound, Unavailable):
                # With the directory away nobody can tell whether a gateway before this one had it; if so, it starts over.
                pass
        if (found := self.sessions.get(workflow_id)) is not None:
            return _same(found, session)
        self._add(session)
        self.tell(session, EventKind.WORKFLOW_STARTED, graph=session.step_graph)
        await self.journal.write(session)
        return session

    async def find(self, workflow_id: str) -> Session:
        """The open workflow of that id, its lease renewed; one that a gateway before this one had is taken over.

        Raises:
            InvalidArgument: the id is empty or too long.
            NotFound: there is none.
            Unavailable: it is not known here, and the directory cannot be asked.
        """
        checks.required_name("workflow_id", workflow_id)
        if (session := self.sessions.get(workflow_id)) is not None:
            return session
        record = await self.journal.find(workflow_id)
        if (session := self.sessions.get(workflow_id)) is not None:
            return session
        return self._resume(record)

    async def take_over(self) -> None:
        """Opens every workflow that a gateway before this one had, so that those that stay silent are ended and retired.

        What cannot be read now, because the directory is away, is looked up when it is asked for.
        """
        try:
            async for record in self.journal.records():
                if self.sessions.get(record.workflow_id) is None:
                    self.journal.note(self._resume(record))  # its lease starts anew, there as here
        except (Unavailable, ResourceExhausted) as error:
            log.warning("not all open workflows are taken over now: %s", error)

    async def report_tool(self, request: workflow_pb2.ReportToolCallRequest) -> None:
        """Raises:
        InvalidArgument: a field is missing or out of its range.
        NotFound: there is no such workflow.
        """
        session = await self.find(request.workflow_id)
        tool = checks.required_name("tool", request.tool)
        call_id = checks.name("call_id", request.call_id)
        expected_s = checks.seconds("expected_s", request.expected_s) if request.HasField("expected_s") else None
        match request.phase:
            case workflow_pb2.ReportToolCallRequest.PHASE_STARTED:
                kind = EventKind.TOOL_STARTED
            case workflow_pb2.ReportToolCallRequest.PHASE_FINISHED:
                kind = EventKind.TOOL_FINISHED
            case _:
                raise InvalidArgument("phase", "must be PHASE_STARTED or PHASE_FINISHED")
        if session.tool_news(tool, call_id, kind is EventKind.TOOL_STARTED):
            self.tell(session, kind, tool=tool, expected_s=expected_s)
        self.renew(session)

    async def end(self, session: Session) -> None:
        """Ends a workflow: cancels its steps, tells the predictor, and has the workers retire what only it held."""
        if session.ended:
            return
        self.sessions.remove(session)
        for step in list(session.running):
            step.end()
        self.tell(session, EventKind.WORKFLOW_ENDED)
        served = [each for each in self.pool.known() if session.served_by is None or each.id in session.served_by]
        await asyncio.gather(self.journal.write(session), *(self._retire(session, worker) for worker in served))

    def renew(self, session: Session) -> None:
        """Starts the workflow's lease anew. The directory hears of it now and then, since most often a step soon tells more."""
        session.renewed_at = self.clock.now()
        if session.renewed_at - session.recorded_at > _RECORD_SHARE * session.lease_s:
            self.journal.note(session)

    async def run_leases(self) -> None:
        """Ends the workflows that went silent, for ever."""
        while True:
            silent, busy = self.sessions.expired()
            for session in busy:
                self.journal.note(session)
            for session in silent:
                # Ending those before it took time, in which this one may have been heard of.
                if not session.silent(self.clock.now()):
                    continue
                self.decisions[Reason.WORKFLOW_LEASE_EXPIRED] += 1
                await self.end(session)
            await asyncio.sleep(_LEASE_TICK_S)

    def tell(
        self,
        session: Session,
        kind: EventKind,
        *,
        agent: str = "",
        call_site: str = "",
        step: int = 0,
        parent_step: int | None = None,
        tool: str = "",
        expected_s: float | None = None,
        prompt_tokens: int = 0,
        output_tokens: int = 0,
        pieces: tuple[int, ...] = (),
        words: tuple[int, ...] = (),
        hidden: bytes = b"",
        worker: str = "",
        graph: StepGraph | None = None,
    ) -> None:
        """Sends an event of the workflow to the predictor."""
        self.emit(
            WorkflowEvent(
                kind=kind,
                workflow=session.id,
                sequence=session.next_event(),
                time=self.clock.wall(),
                workload=session.workload,
                agent=agent,
                call_site=call_site,
                step=step,
                parent_step=parent_step,
                tool=tool,
                expected_s=expected_s,
                prompt_tokens=prompt_tokens,
                output_tokens=output_tokens,
                pieces=pieces,
                words=words,
                hidden=hidden,
                worker=worker,
                graph=graph,
            )
        )

    def tell_placed(self, session: Session, worker: str) -> None:
        """Tells the predictor that a worker has a first step of a workflow, unless the workflow has ended."""
        if not session.ended:
            self.tell(session, EventKind.STEP_PLACED, worker=worker)

    def _resume(self, record: WorkflowEntry) -> Session:
        """Opens a workflow that a gateway before this one had."""
        age_us = int(max(self.clock.wall() - record.started_at, 0.0) * 1e6)
        session = Session(
            record.workflow_id,
            record.workload,
            record.tenant,
            record.lease_s,
            record.started_at,
            self.clock.now(),
            steps=record.steps,
            # The count of events is lost. It goes on where it cannot have been: nobody sends one a microsecond.
            events=age_us,
            served_by=None,
            step_graph=record.step_graph,
        )
        self._add(session)
        self.decisions[Reason.WORKFLOW_RESUMED] += 1
        return session

    def _add(self, session: Session) -> None:
        try:
            self.sessions.add(session)
        except ResourceExhausted:
            self.decisions[Reason.WORKFLOW_REFUSED] += 1
            raise

    async def _retire(self, session: Session, worker: Worker) -> None:
        request = worker_pb2.RetireWorkflowRequest(workflow_id=session.id)
        try:
            with worker.calling() as stub:
                await stub.RetireWorkflow(request, timeout=_RETIRE_TIMEOUT_S)
        except (aio.AioRpcError, Unavailable):
            # A worker that is gone holds nothing; on one that is not, the blocks age out as any others do.
            self.decisions[Reason.RETIRE_FAILED] += 1


def _same(session: Session, asked: Session) -> Session:
    """The open session, if the tenant and the step graph that were asked for are its own or were left out.

    Raises:
        InvalidArgument: they are not.
    """
    if asked.tenant not in ("", session.tenant):
        raise InvalidArgument("tenant", f"workflow {session.id!r} is open under another tenant")
    if asked.step_graph not in (None, session.step_graph):
        raise InvalidArgument("step_graph", f"workflow {session.id!r} is open without it, or with another")
    return session
