"""`InspectionService` on the wire."""

import heapq
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

from pbkv_cluster.core import checks
from pbkv_cluster.core.clock import Clock
from pbkv_cluster.core.errors import NotFound
from pbkv_cluster.gateway.inspection.agents import Agents, AgentStats, CallSite
from pbkv_cluster.gateway.inspection.index_check import IndexCheck, Problem
from pbkv_cluster.gateway.inspection.path import latest_step, path
from pbkv_cluster.gateway.inspection.watchers import Watchers
from pbkv_cluster.gateway.peers.everywhere import TIMEOUT_S, Everywhere
from pbkv_cluster.gateway.peers.link import is_passed_on
from pbkv_cluster.gateway.peers.merging import merge_agents, merge_workflows
from pbkv_cluster.gateway.workflow.open_workflows import OpenWorkflow, OpenWorkflows
from pbkv_cluster.rpc.convert import tiers_to_wire
from pbkv_cluster.rpc.v1 import inspection_pb2, inspection_pb2_grpc, predictor_pb2

_WORKFLOWS = 100  # that are returned where a request has no limit
_MAX_WORKFLOWS = 1000
_AGENTS = 100
_MAX_AGENTS = 1000
_DIFFERENCES = 100  # that are named

# The events of one open workflow, in order, as far as they are kept.
History = Callable[[str], Sequence[predictor_pb2.WorkflowEvent]]


class InspectionServicer(inspection_pb2_grpc.InspectionServiceServicer):
    """See proto/pbkv/v1/inspection.proto. Looking at a workflow does not renew its lease."""

    def __init__(
        self,
        workflows: OpenWorkflows,
        history: History,
        agents: Agents,
        index: IndexCheck,
        watchers: Watchers,
        clock: Clock,
        everywhere: Everywhere,
    ) -> None:
        self._everywhere = everywhere
        self._workflows = workflows
        self._history = history
        self._agents = agents
        self._index = index
        self._watchers = watchers
        self._clock = clock

    async def ListWorkflows(  # noqa: N802
        self, request: inspection_pb2.ListWorkflowsRequest, context: Any
    ) -> inspection_pb2.ListWorkflowsResponse:
        limit = checks.in_range("limit", request.limit, 0, _MAX_WORKFLOWS) or _WORKFLOWS
        workload = checks.name("workload", request.workload)
        found = (each for each in self._workflows.all() if workload in ("", each.workload))
        latest = heapq.nlargest(limit, found, key=lambda each: each.renewed_at)
        own = inspection_pb2.ListWorkflowsResponse(
            workflows=[self._summary(each, self._history(each.id)) for each in latest], open=len(self._workflows)
        )
        if is_passed_on(context):
            return own
        others = await self._everywhere.ask(lambda peer: peer.list_workflows(request, TIMEOUT_S))
        return merge_workflows(own, others.values(), limit)

    async def GetWorkflow(  # noqa: N802
        self, request: inspection_pb2.GetWorkflowRequest, context: Any
    ) -> inspection_pb2.GetWorkflowResponse:
        name = checks.required_name("workflow_id", request.workflow_id)
        workflow = self._workflows.peek(name)
        if workflow is None:
            others = {} if is_passed_on(context) else await self._everywhere.ask(lambda peer: peer.workflow(request, TIMEOUT_S))
            for found in others.values():
                return found
            raise NotFound(f"no open workflow {name!r}")
        events = self._history(name)
        return inspection_pb2.GetWorkflowResponse(summary=self._summary(workflow, events), steps=path(events))

    async def ListAgents(  # noqa: N802
        self, request: inspection_pb2.ListAgentsRequest, context: Any
    ) -> inspection_pb2.ListAgentsResponse:
        limit = checks.in_range("limit", request.limit, 0, _MAX_AGENTS) or _AGENTS
        found = self._agents.first(limit, checks.name("workload", request.workload))
        own = inspection_pb2.ListAgentsResponse(agents=[_agent(site, stats) for site, stats in found])
        if is_passed_on(context):
            return own
        others = await self._everywhere.ask(lambda peer: peer.list_agents(request, TIMEOUT_S))
        return merge_agents(own, others.values(), limit)

    async def CheckIndex(  # noqa: N802
        self, request: inspection_pb2.CheckIndexRequest, context: Any
    ) -> inspection_pb2.CheckIndexResponse:
        report = await self._index.run()
        problems = Counter(each.problem for each in report.lasting)
        return inspection_pb2.CheckIndexResponse(
            indexed_blocks=report.indexed_blocks,
            held_blocks=report.held_blocks,
            unbacked_blocks=problems[Problem.UNBACKED],
            missing_blocks=problems[Problem.MISSING],
            misplaced_blocks=problems[Problem.MISPLACED],
            changing_blocks=report.changing_blocks,
            differences=[
                inspection_pb2.CheckIndexResponse.Difference(
                    worker_id=each.worker_id, key=each.key.hex(), problem=each.problem.value
                )
                for each in report.lasting[:_DIFFERENCES]
            ],
        )

    async def WatchWorkflows(  # noqa: N802
        self, request: inspection_pb2.WatchWorkflowsRequest, context: Any
    ) -> AsyncIterator[inspection_pb2.WatchedEvent]:
        watch = self._watchers.open(request.with_token_ids)
        try:
            await context.send_initial_metadata(())
            async for event in watch:
                yield event
        finally:
            self._watchers.close(watch)

    def _summary(self, workflow: OpenWorkflow, events: Sequence[predictor_pb2.WorkflowEvent]) -> inspection_pb2.WorkflowSummary:
        agent, tool = latest_step(events)
        return inspection_pb2.WorkflowSummary(
            workflow_id=workflow.id,
            workload=workflow.workload,
            started_s=workflow.started_at,
            idle_s=0.0 if workflow.running else max(0.0, self._clock.now() - workflow.renewed_at),
            lease_s=workflow.lease_s,
            steps=workflow.steps,
            running_steps=len(workflow.running),
            agent_id=agent,
            tool=tool,
            worker_ids=sorted(workflow.served_by or ()),
        )


def _agent(site: CallSite, stats: AgentStats) -> inspection_pb2.AgentSummary:
    meter = stats.meter
    return inspection_pb2.AgentSummary(
        workload=site.workload,
        agent_id=site.agent,
        call_site=site.call_site,
        steps=meter.steps,
        prompt_tokens=meter.prompt_tokens,
        available_tokens=meter.available_tokens,
        captured=tiers_to_wire(meter.captured),
        delivered=tiers_to_wire(meter.delivered),
        generated_tokens=meter.generated_tokens,
        parting_pairs=len(stats.partings),
        parting_tokens=stats.parting_tokens,
    )
