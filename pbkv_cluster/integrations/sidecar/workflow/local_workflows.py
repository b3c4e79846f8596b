"""Opens and ends workflows in this process alone: what engines hold of them ages as everything else does."""

import asyncio
import uuid
from collections.abc import Callable
from dataclasses import dataclass

from pbkv_cluster.core.clock import Clock
from pbkv_cluster.core.config import GatewayConfig
from pbkv_cluster.core.errors import NotFound, ResourceExhausted
from pbkv_cluster.core.workflow.events import EventKind
from pbkv_cluster.core.workflow.tool_call import ToolCall
from pbkv_cluster.gateway import checks
from pbkv_cluster.gateway.decisions import Decisions, Reason
from pbkv_cluster.gateway.workflow.events import EventReporter
from pbkv_cluster.gateway.workflow.lifecycle import same_workflow
from pbkv_cluster.gateway.workflow.open_workflows import OpenWorkflow, OpenWorkflows
from pbkv_cluster.gateway.workflow.requests import WorkflowRequest

_LEASE_TICK_S = 0.25


@dataclass(slots=True)
class LocalWorkflows:
    """Every call about workflows except their steps; see `gateway.http.sessions.sessions.Workflows`."""

    config: GatewayConfig
    workflows: OpenWorkflows
    events: EventReporter
    decisions: Decisions
    clock: Clock
    on_end: Callable[[OpenWorkflow], None]

    async def start(self, request: WorkflowRequest) -> OpenWorkflow:
        """Opens a workflow, or finds the open one of that id.

        Raises:
            InvalidArgument: a name is too long, or the open workflow has another tenant.
            ResourceExhausted: too many workflows are open.
        """
        asked = OpenWorkflow(
            checks.name("workflow_id", request.workflow_id) or uuid.uuid4().hex,
            checks.name("workload", request.workload),
            checks.name("tenant", request.tenant),
            request.lease_s or self.config.workflow_lease_s,
            self.clock.wall(),
            self.clock.now(),
        )
        if (found := self.workflows.get(asked.id)) is not None:
            return same_workflow(found, asked)
        try:
            self.workflows.add(asked)
        except ResourceExhausted:
            self.decisions[Reason.WORKFLOW_REFUSED] += 1
            raise
        self.events.report(asked, EventKind.WORKFLOW_STARTED)
        return asked

    async def report_tool(self, workflow_id: str, call: ToolCall, started: bool) -> None:
        """Reports a tool call to the predictor. Repeats are harmless.

        Raises:
            NotFound: there is no such workflow.
        """
        workflow = self._find(workflow_id)
        if self.workflows.note_tool_call(workflow, call.tool, call.call_id, started):
            kind = EventKind.TOOL_STARTED if started else EventKind.TOOL_FINISHED
            self.events.report(workflow, kind, tool=call.tool)

    async def end(self, workflow_id: str) -> None:
        """Ends a workflow, and cuts its requests off.

        Raises:
            NotFound: there is no such workflow.
        """
        self._end(self._find(workflow_id))

    async def run_leases(self) -> None:
        """Ends silent workflows when their leases expire, for ever."""
        while True:
            for workflow in self.workflows.expired().silent:
                self.decisions[Reason.WORKFLOW_LEASE_EXPIRED] += 1
                self._end(workflow)
            await asyncio.sleep(_LEASE_TICK_S)

    def _find(self, workflow_id: str) -> OpenWorkflow:
        workflow = self.workflows.get(workflow_id)
        if workflow is None:
            raise NotFound(f"there is no open workflow {workflow_id!r}")
        return workflow

    def _end(self, workflow: OpenWorkflow) -> None:
        self.workflows.remove(workflow)
        for step in list(workflow.running):
            step.cancel()
        self.events.report(workflow, EventKind.WORKFLOW_ENDED)
        self.on_end(workflow)
