"""The workflow and the agent of each request, and the pauses and ends of workflows that follow from requests."""

import logging
import uuid
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from pbkv_cluster.core import checks
from pbkv_cluster.core.errors import NotFound, PbkvError
from pbkv_cluster.core.text.chat_message import ChatMessage, FunctionCall
from pbkv_cluster.core.workflow.tenant_ids import of_tenant
from pbkv_cluster.core.workflow.tool_call import ToolCall
from pbkv_cluster.gateway.http.sessions import chains
from pbkv_cluster.gateway.http.sessions.chains import Beginning
from pbkv_cluster.gateway.http.sessions.hints import Hints
from pbkv_cluster.gateway.http.sessions.prefix_table import PrefixTable
from pbkv_cluster.gateway.http.sessions.tool_pauses import ToolPauses
from pbkv_cluster.gateway.workflow.open_workflows import OpenWorkflows
from pbkv_cluster.gateway.workflow.requests import WorkflowRequest

log = logging.getLogger(__name__)

_MAX_SESSIONS = 65_536  # of Dynamo, whose workflow is remembered


class Started(Protocol):
    """A workflow that is open."""

    @property
    def id(self) -> str: ...


class Workflows(Protocol):
    """Opens and ends workflows. `WorkflowCalls` is one, for those of a cluster."""

    @property
    def workflows(self) -> OpenWorkflows:
        """Those that are held here."""
        ...

    async def start(self, request: WorkflowRequest) -> Started:
        """Opens a workflow, or finds the open one of that id."""
        ...

    async def report_tool(self, workflow_id: str, call: ToolCall, started: bool) -> None:
        """A tool call of a workflow has started or ended."""
        ...

    async def end(self, workflow_id: str) -> None:
        """Ends a workflow."""
        ...


@dataclass(frozen=True, slots=True)
class Attribution:
    """Whose step a request is."""

    workflow: str
    agent: str
    tenant: str
    beginnings: Sequence[Beginning]  # of the prompt; empty: the client has named the workflow
    opened: bool = False  # the workflow was opened for this request, and the client does not know its id yet


class Sessions:
    """Attributes requests to workflows and agents.

    The workflow is, in this order: the one that the client names; its session, or the session that this one is a child of; its
    cache key; its trace; an open workflow that the prompt continues; a new one.
    """

    def __init__(self, workflows: Workflows, capacity_bytes: int) -> None:
        """Args:
        workflows: of the gateway, or of what else serves the requests.
        capacity_bytes: of what is remembered to recognise conversations by.
        """
        self._workflows = workflows
        self._prefixes = PrefixTable(capacity_bytes)
        self._pauses = ToolPauses()
        self._roots: OrderedDict[tuple[str, str], str] = OrderedDict()  # tenant and session to workflow

    async def attribute(
        self, hints: Hints, messages: Sequence[ChatMessage], text: str, tools: Sequence[Mapping[str, Any]]
    ) -> Attribution:
        """The workflow and the agent of a request, opened if need be; ends the tool calls that it brings the results of.

        Raises:
            PbkvError: a name is too long, the workflow has another tenant, or no more may be opened.
        """
        agent = hints.agent or chains.agent_name(messages, tools)
        beginnings: Sequence[Beginning] = ()
        opened = False
        if named := self._named(hints):
            workflow = await self._open(named, hints)
        else:
            beginnings = chains.of_messages(messages) if messages else chains.of_text(text)
            found = self._recognised(hints, beginnings, agent)
            opened = found is None
            workflow = found or await self._open(uuid.uuid4().hex, hints)
            if beginnings:
                self._prefixes.add(hints.tenant, beginnings[-1], workflow, agent)
        for call in self._pauses.end(workflow, agent, messages):
            await self._report(workflow, ToolCall(call.tool, call.call_id), started=False)
        return Attribution(workflow, agent, hints.tenant, beginnings, opened)

    async def answered(self, attribution: Attribution, text: str, calls: Sequence[FunctionCall]) -> None:
        """A step has answered; the tool calls that it asks for begin."""
        if attribution.beginnings:
            whole = chains.extended(attribution.beginnings, text, calls)
            self._prefixes.add(attribution.tenant, whole, attribution.workflow)
        for call in self._pauses.begin(attribution.workflow, attribution.agent, calls):
            name = call.tool.encode()[: checks.MAX_NAME_BYTES].decode(errors="ignore")
            await self._report(attribution.workflow, ToolCall(name, call.call_id), started=True)

    async def over(self, hints: Hints, attribution: Attribution) -> None:
        """A request is over. If it was the last of a session that is no other's child, its workflow ends.

        So does a workflow that was opened for it, if its step has been refused.
        """
        workflow = self._workflows.workflows.peek(attribution.workflow)
        refused = attribution.opened and workflow is not None and not workflow.steps
        if refused or (hints.final and not hints.parent_session):
            try:
                await self.end(attribution.workflow)
            except NotFound:
                log.debug("workflow %s ended while the step ran", attribution.workflow)
            except PbkvError as error:
                log.warning("workflow %s ends by its lease: %s", attribution.workflow, error)

    async def end(self, workflow_id: str) -> None:
        """Ends a workflow.

        Raises:
            NotFound: there is no such workflow.
            Unavailable: whether there is one cannot be told now.
        """
        await self._workflows.end(workflow_id)
        self._pauses.forget(workflow_id)

    def _named(self, hints: Hints) -> str:
        """The id of the workflow that the client names in one way or another; empty: it does not."""
        if hints.workflow:
            return of_tenant(hints.workflow, hints.tenant)
        if hints.session:
            parent = hints.parent_session or hints.session
            root = self._roots.get((hints.tenant, parent), parent)
            self._roots[hints.tenant, hints.session] = root
            self._roots.move_to_end((hints.tenant, hints.session))
            if len(self._roots) > _MAX_SESSIONS:
                self._roots.popitem(last=False)
            return of_tenant(root, hints.tenant)
        return of_tenant(hints.cache_key or (f"trace-{hints.trace}" if hints.trace else ""), hints.tenant)

    async def _open(self, workflow_id: str, hints: Hints) -> str:
        return (await self._workflows.start(WorkflowRequest(workflow_id, hints.workload, hints.tenant))).id

    def _recognised(self, hints: Hints, beginnings: Sequence[Beginning], agent: str) -> str | None:
        """The id of the open workflow that a prompt continues."""
        for workflow_id in self._prefixes.find(hints.tenant, beginnings, agent):
            workflow = self._workflows.workflows.get(workflow_id)
            if workflow is not None and workflow.tenant == hints.tenant and hints.workload in ("", workflow.workload):
                return workflow.id
        return None

    async def _report(self, workflow_id: str, call: ToolCall, *, started: bool) -> None:
        """Reports a tool call. The answer that asks for it, or the step that ends it, does not fail with the report."""
        try:
            await self._workflows.report_tool(workflow_id, call, started)
        except NotFound:
            log.debug("workflow %s has ended, and its tool calls with it", workflow_id)
        except PbkvError as error:
            log.warning("a tool call of workflow %s is not reported: %s", workflow_id, error)
