"""The life of workflows: start, resumption, tool calls, end by the client or by the lease."""

import asyncio
import logging
import uuid
from dataclasses import dataclass

from pbkv_cluster.core.clock import Clock
from pbkv_cluster.core.config import GatewayConfig
from pbkv_cluster.core.errors import InvalidArgument, NotFound, ResourceExhausted, Unavailable
from pbkv_cluster.core.security.caller import current_caller
from pbkv_cluster.core.workflow.events import EventKind
from pbkv_cluster.core.workflow.tool_call import ToolCall
from pbkv_cluster.gateway import checks
from pbkv_cluster.gateway.decisions import Decisions, Reason
from pbkv_cluster.gateway.meter import GatewayMeter
from pbkv_cluster.gateway.routing.contexts import Contexts
from pbkv_cluster.gateway.routing.worker import Worker
from pbkv_cluster.gateway.routing.worker_pool import WorkerPool
from pbkv_cluster.gateway.workflow.entry_writer import EntryWriter
from pbkv_cluster.gateway.workflow.events import EventReporter
from pbkv_cluster.gateway.workflow.open_workflows import OpenWorkflow, OpenWorkflows
from pbkv_cluster.gateway.workflow.requests import WorkflowRequest
from pbkv_cluster.gateway.workflow.step_teller import StepTeller
from pbkv_cluster.store.cluster_index import WorkflowEntry

log = logging.getLogger(__name__)

_LEASE_TICK_S = 0.25
_RENEWAL_SHARE = 0.25  # of a lease that may pass before a renewal is written to the directory


@dataclass(slots=True)
class WorkflowLifecycle:
    """Every call about workflows except their steps."""

    config: GatewayConfig
    workflows: OpenWorkflows
    entries: EntryWriter
    pool: WorkerPool
    events: EventReporter
    teller: StepTeller
    contexts: Contexts
    decisions: Decisions
    meter: GatewayMeter
    clock: Clock

    async def start(self, request: WorkflowRequest) -> OpenWorkflow:
        """Opens a workflow, or finds the open one of that id.

        Raises:
            InvalidArgument: a name is too long, the lease is out of its range, or the open workflow has another tenant or
                step graph.
            PermissionDenied: the tenant is not the caller's.
            ResourceExhausted: too many workflows are open, or their step graphs are too large.
        """
        if request.step_graph is not None:
            checks.step_graph(request.step_graph)
        asked = OpenWorkflow(
            checks.name("workflow_id", request.workflow_id) or uuid.uuid4().hex,
            checks.name("workload", request.workload),
            current_caller().tenant_of(checks.name("tenant", request.tenant)),
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
                # While the directory is away, a workflow that was open before a restart of the gateway starts over.
                pass
        if (found := self.workflows.get(asked.id)) is not None:
            return same_workflow(found, asked)
        self._add(asked)
        self.events.report(asked, EventKind.WORKFLOW_STARTED, graph=asked.step_graph)
        await self.entries.write(asked)
        return asked

    async def find(self, workflow_id: str) -> OpenWorkflow:
        """The open workflow of that id, its lease renewed. One that was open before a restart of the gateway is resumed.

        Raises:
            InvalidArgument: the id is empty or too long.
            NotFound: there is none, or it is another tenant's than the caller's.
            Unavailable: it is not open in this process, and the directory does not answer.
        """
        checks.required_name("workflow_id", workflow_id)
        if (workflow := self._known(workflow_id)) is not None:
            return workflow
        entry = await self.entries.find(workflow_id)
        if (workflow := self._known(workflow_id)) is not None:
            return workflow
        _check_tenant(workflow_id, entry.tenant)
        return self._resume(entry)

    async def resume_all(self) -> None:
        """Resumes every workflow in the directory, so that those that stay silent are ended and retired.

        What cannot be read because the directory is away is looked up when a call names it.
        """
        try:
            async for entry in self.entries.entries():
                if self.workflows.get(entry.workflow_id) is None:
                    self.entries.write_soon(self._resume(entry))  # its lease starts anew in the directory too
        except (Unavailable, ResourceExhausted) as error:
            log.warning("not all open workflows are resumed now: %s", error)

    async def report_tool(self, workflow_id: str, call: ToolCall, started: bool) -> None:
        """Reports a tool call to the predictor, and to the workers that have run steps of the workflow. Repeats are harmless.

        Raises:
            InvalidArgument: the id of the workflow is empty or too long.
            NotFound: there is no such workflow.
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
            Unavailable: it is not open in this process, and the directory does not answer.
        """
        await self._end(await self.find(workflow_id))

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
                if not workflow.silent(self.clock.now()):
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
        self.contexts.drop(workflow.id)  # at once: a workflow of that id may be opened while the workers are told
        retired = (self._retire(workflow, worker) for worker in self._served(workflow))
        try:
            await asyncio.gather(self.entries.write(workflow), *retired)
        finally:
            self.teller.drop(workflow)

    def _known(self, workflow_id: str) -> OpenWorkflow | None:
        """The workflow if it is open in this process, its lease renewed; another tenant's is not, before its lease is."""
        if (workflow := self.workflows.peek(workflow_id)) is not None:
            _check_tenant(workflow_id, workflow.tenant)
        return self.workflows.get(workflow_id)

    def _served(self, workflow: OpenWorkflow) -> list[Worker]:
        """The workers that may have run steps of the workflow."""
        return [each for each in self.pool.known() if workflow.served_by is None or each.id in workflow.served_by]

    def _resume(self, entry: WorkflowEntry) -> OpenWorkflow:
        """Opens a workflow that was open before a restart of the gateway."""
        age_us = int(max(self.clock.wall() - entry.started_at, 0.0) * 1e6)
        workflow = OpenWorkflow(
            entry.workflow_id,
            entry.workload,
            entry.tenant,
            entry.lease_s,
            entry.started_at,
            self.clock.now(),
            steps=entry.steps,
            # The number of events sent is lost. Less than one a microsecond has been, so this sequence is new.
            events=age_us,
            served_by=None,
            step_graph=entry.step_graph,
        )
        self._add(workflow)
        self.events.recall_start(workflow)
        self.decisions[Reason.WORKFLOW_RESUMED] += 1
        return workflow

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


def _check_tenant(workflow_id: str, tenant: str) -> None:
    """Raises:
    NotFound: the workflow is another tenant's than the caller's.
    """
    if not current_caller().may_use(tenant):
        raise _AnothersWorkflow(f"no open workflow {workflow_id!r}")


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
