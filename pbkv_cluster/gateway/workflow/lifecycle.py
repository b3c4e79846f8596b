"""The life of the workflows that this gateway holds: start, take-over, tool calls, end by the client or by the lease."""

import asyncio
import logging
import uuid
from collections.abc import Callable
from dataclasses import dataclass

from pbkv_cluster.core.clock import Clock
from pbkv_cluster.core.config import GatewayConfig
from pbkv_cluster.core.errors import InvalidArgument, NotFound, ResourceExhausted, TryAgain, Unavailable
from pbkv_cluster.core.security.caller import current_caller
from pbkv_cluster.core.workflow.events import EventKind
from pbkv_cluster.core.workflow.tenant_ids import of_tenant
from pbkv_cluster.core.workflow.tool_call import ToolCall
from pbkv_cluster.gateway import checks
from pbkv_cluster.gateway.decisions import Decisions, Reason
from pbkv_cluster.gateway.meter import GatewayMeter
from pbkv_cluster.gateway.peers.peers import HeldElsewhere, Peers
from pbkv_cluster.gateway.routing.contexts import Contexts
from pbkv_cluster.gateway.routing.worker import Worker
from pbkv_cluster.gateway.routing.worker_pool import WorkerPool
from pbkv_cluster.gateway.workflow.entry_writer import EntryWriter, not_open
from pbkv_cluster.gateway.workflow.events import EventReporter
from pbkv_cluster.gateway.workflow.open_workflows import OpenWorkflow, OpenWorkflows
from pbkv_cluster.gateway.workflow.requests import WorkflowRequest
from pbkv_cluster.gateway.workflow.step_teller import StepTeller
from pbkv_cluster.store.cluster_index import Holder, WorkflowEntry

log = logging.getLogger(__name__)

_LEASE_TICK_S = 0.25
_RENEWAL_SHARE = 0.25  # of a lease that may pass before a renewal is written to the directory
_EVENTS_BITS = 32  # of an event's number; those above count how often the workflow has been taken over
_ATTEMPTS = 8  # to take a workflow over while others do the same


@dataclass(slots=True)
class WorkflowLifecycle:
    """Every call about workflows except their steps.

    One that another gateway holds raises `HeldElsewhere`, unless that gateway is known to be gone: then it is taken over.
    """

    config: GatewayConfig
    peers: Peers
    workflows: OpenWorkflows
    entries: EntryWriter
    pool: WorkerPool
    events: EventReporter
    teller: StepTeller
    contexts: Contexts
    decisions: Decisions
    meter: GatewayMeter
    clock: Clock
    forget: Callable[[OpenWorkflow], None]  # what others keep of a workflow that this gateway holds no longer

    def __post_init__(self) -> None:
        self.entries.on_moved = self._moved

    async def start(self, request: WorkflowRequest) -> OpenWorkflow:
        """Opens a workflow, or finds the open one of that id.

        Raises:
            InvalidArgument: a name is too long, the lease is out of its range, or the open workflow has another tenant or
                step graph.
            PermissionDenied: the tenant is not the caller's.
            ResourceExhausted: too many workflows are open, or their step graphs are too large.
            HeldElsewhere: another gateway holds it.
        """
        if request.step_graph is not None:
            checks.step_graph(request.step_graph)
        tenant = current_caller().tenant_of(checks.name("tenant", request.tenant))
        asked = OpenWorkflow(
            checks.name("workflow_id", of_tenant(request.workflow_id or uuid.uuid4().hex, tenant)),
            checks.name("workload", request.workload),
            tenant,
            checks.lease("lease_s", request.lease_s) or self.config.workflow_lease_s,
            self.clock.wall(),
            self.clock.now(),
            step_graph=request.step_graph,
        )
        if request.workflow_id:
            try:
                return same_workflow(await self.find(asked.id), asked)
            except _AnothersWorkflow:
                raise _taken(asked.id) from None
            except (NotFound, Unavailable):
                # While the directory is away, a workflow that another gateway has held starts over.
                pass
        if (found := self.workflows.get(asked.id)) is not None:
            return same_workflow(found, asked)
        self._add(asked)
        self.events.report(asked, EventKind.WORKFLOW_STARTED, graph=asked.step_graph)
        await self.entries.write(asked)
        if asked.moved:  # another gateway has opened it at the same time
            return await self.find(asked.id)
        return asked

    async def find(self, workflow_id: str) -> OpenWorkflow:
        """The open workflow of that id, its lease renewed. One whose gateway is gone is taken over.

        Raises:
            InvalidArgument: the id is empty or too long.
            NotFound: there is none, or it is another tenant's than the caller's.
            Unavailable: this gateway does not hold it, and the directory does not answer.
            HeldElsewhere: another gateway holds it.
        """
        workflow_id = checks.required_name("workflow_id", of_tenant(workflow_id, current_caller().tenant))
        for _ in range(_ATTEMPTS):
            if (workflow := self._known(workflow_id)) is not None:
                return workflow
            entry = await self.entries.find(workflow_id)
            if (workflow := self._known(workflow_id)) is not None:
                return workflow
            check_tenant(workflow_id, entry.tenant)
            if not self.peers.is_gone(entry.holder):
                raise HeldElsewhere(entry.holder, entry.tenant)
            if (workflow := await self._take_over(entry)) is not None:
                return workflow
        raise TryAgain(f"workflow {workflow_id!r} moves from gateway to gateway")

    async def take_over_all(self, gone: Callable[[Holder], bool]) -> None:
        """Takes over every workflow whose holder is gone, so that those that stay silent are ended and retired.

        What cannot be read because the directory is away is looked up when a call names it.
        """
        try:
            async for entry in self.entries.entries():
                if self.workflows.peek(entry.workflow_id) is None and gone(entry.holder):
                    await self._take_over(entry)
        except (Unavailable, ResourceExhausted) as error:
            log.warning("not all open workflows are taken over now: %s", error)

    async def report_tool(self, workflow_id: str, call: ToolCall, started: bool) -> None:
        """Reports a tool call to the predictor, and to the workers that have run steps of the workflow. Repeats are harmless.

        Raises:
            InvalidArgument: the id of the workflow is empty or too long.
            NotFound: there is no such workflow.
            HeldElsewhere: another gateway holds it.
        """
        workflow = await self.find(workflow_id)
        if self.workflows.note_tool_call(workflow, call.tool, call.call_id, started):
            kind = EventKind.TOOL_STARTED if started else EventKind.TOOL_FINISHED
            self.events.report(workflow, kind, tool=call.tool, expected_s=call.expected_s)
            told = (worker.report_tool_call(workflow.id, call, started) for worker in self._served(workflow))
            if unheard := (await asyncio.gather(*told)).count(False):
                self.decisions[Reason.TOOL_CALL_UNHEARD] += unheard
        self.renew(workflow)

    async def end(self, workflow_id: str) -> None:
        """Ends a workflow: cancels its steps, reports its end, and has the workers retire what only it held.

        Raises:
            InvalidArgument: the id is empty or too long.
            NotFound: there is no such workflow.
            Unavailable: this gateway does not hold it, and the directory does not answer.
            HeldElsewhere: another gateway holds it.
        """
        workflow = await self.find(workflow_id)
        if not await self.entries.holds(workflow):  # else the gateway that does would keep it open, and nobody would be told
            workflow = await self.find(workflow_id)
        await self._end(workflow)

    def renew(self, workflow: OpenWorkflow) -> None:
        """Starts the workflow's lease anew. Not every renewal is written: most often a step soon writes the entry anyway."""
        workflow.renewed_at = self.clock.now()
        if workflow.renewed_at - workflow.written_at > _RENEWAL_SHARE * workflow.lease_s:
            self.entries.write_soon(workflow)

    def write_soon(self, workflow: OpenWorkflow) -> None:
        """Has the workflow's entry in the directory written soon."""
        self.entries.write_soon(workflow)

    async def run_leases(self) -> None:
        """Ends silent workflows when their leases expire, for ever."""
        while True:
            silent, busy = self.workflows.expired()
            for workflow in busy:
                self.entries.write_soon(workflow)
            for workflow in silent:
                # Ending the workflows before it took time, in which a call may have renewed this one.
                if not workflow.silent(self.clock.now()) or not await self.entries.holds(workflow):
                    continue
                self.decisions[Reason.WORKFLOW_LEASE_EXPIRED] += 1
                await self._end(workflow)
            await asyncio.sleep(_LEASE_TICK_S)

    async def _end(self, workflow: OpenWorkflow) -> None:
        if workflow.ended:
            return
        self.workflows.remove(workflow)
        silent_s = self.clock.now() - workflow.renewed_at  # since the last call, if the lease has ended it
        self.meter.workflow_ended(max(self.clock.wall() - workflow.started_at - silent_s, 0.0))
        self.entries.write_soon(workflow)  # at once: a lookup that comes before its removal must not find it again
        for step in list(workflow.running):
            step.cancel()
        self.events.report(workflow, EventKind.WORKFLOW_ENDED)
        self.forget(workflow)
        self.contexts.end(workflow.id)  # at once: a workflow of that id may be opened while the workers are told
        retired = (self._retire(workflow, worker) for worker in self._served(workflow))
        try:
            await asyncio.gather(self.entries.write(workflow), *retired)
        finally:
            self.teller.drop(workflow)

    def _known(self, workflow_id: str) -> OpenWorkflow | None:
        """The workflow if it is open in this process, its lease renewed; another tenant's is not, before its lease is."""
        if (workflow := self.workflows.peek(workflow_id)) is not None:
            check_tenant(workflow_id, workflow.tenant)
        return self.workflows.get(workflow_id)

    def _served(self, workflow: OpenWorkflow) -> list[Worker]:
        """The workers that may have run steps of the workflow, or have leases that end with it."""
        if workflow.served_by is None:
            return list(self.pool.known())
        told = workflow.served_by | workflow.leased_on
        return [each for each in self.pool.known() if each.id in told]

    async def _take_over(self, entry: WorkflowEntry) -> OpenWorkflow | None:
        """Makes this gateway the holder of a workflow; None if another one was faster, or another call to this one."""
        taken = await self.entries.take_over(entry)
        if taken is None or self.workflows.peek(entry.workflow_id) is not None:
            return None
        workflow = OpenWorkflow(
            taken.workflow_id,
            taken.workload,
            taken.tenant,
            taken.lease_s,
            taken.started_at,
            self.clock.now(),
            written_at=self.clock.now(),
            steps=taken.steps,
            # The number of events sent is lost. These are above all that an earlier holder has sent, or still sends.
            events=taken.taken << _EVENTS_BITS,
            served_by=None,
            step_graph=taken.step_graph,
            taken=taken.taken,
        )
        self._add(workflow)
        self.events.recall_start(workflow)
        self.decisions[Reason.WORKFLOW_RESUMED] += 1
        return workflow

    def _moved(self, workflow: OpenWorkflow) -> None:
        """Another gateway has taken a workflow over. Steps that run here go on, and only their clients are told of them."""
        if workflow.ended:
            return
        self.workflows.remove(workflow)
        workflow.moved = True
        self.contexts.drop(workflow.id)
        self.teller.drop(workflow)
        self.forget(workflow)
        self.decisions[Reason.WORKFLOW_MOVED] += 1

    def _add(self, workflow: OpenWorkflow) -> None:
        try:
            self.workflows.add(workflow)
        except ResourceExhausted:
            self.decisions[Reason.WORKFLOW_REFUSED] += 1
            raise

    async def _retire(self, workflow: OpenWorkflow, worker: Worker) -> None:
        await self.teller.finish(workflow, worker)
        if not await worker.retire(workflow.id):
            # A worker that is gone holds nothing; on one that is not, the blocks age as any others do.
            self.decisions[Reason.RETIRE_FAILED] += 1


class _AnothersWorkflow(NotFound):
    """It is open, but not for the caller, who is told that there is none."""


def check_tenant(workflow_id: str, tenant: str) -> None:
    """Raises:
    NotFound: the workflow is another tenant's than the caller's.
    """
    if not current_caller().may_use(tenant):
        raise _AnothersWorkflow(not_open(workflow_id))


def _taken(workflow_id: str) -> InvalidArgument:
    return InvalidArgument("tenant", f"workflow {workflow_id!r} is open under another tenant")


def same_workflow(workflow: OpenWorkflow, asked: OpenWorkflow) -> OpenWorkflow:
    """The open workflow, if the tenant and the step graph asked for are its own or were left out.

    Raises:
        InvalidArgument: they are not.
    """
    if asked.tenant not in ("", workflow.tenant):
        raise _taken(workflow.id)
    if asked.step_graph not in (None, workflow.step_graph):
        raise InvalidArgument("step_graph", f"workflow {workflow.id!r} is open without it, or with another")
    return workflow
