"""The active workflows of a cache: tells the policies what happens to them, and ranks nodes anew whose values that changes."""

from collections import OrderedDict
from collections.abc import Callable, Collection, Sequence

from pbkv_cluster.cache.policies.base import ReusePolicy
from pbkv_cluster.cache.step_identity import StepIdentity
from pbkv_cluster.cache.tiers.tiers import Tiers
from pbkv_cluster.cache.tree.node import Owner
from pbkv_cluster.core.clock import Clock
from pbkv_cluster.core.forecasts.forecast import Forecast
from pbkv_cluster.core.workflow.access_log import AccessLog
from pbkv_cluster.core.workflow.step_graph import StepGraph
from pbkv_cluster.core.workflow.tool_call import ToolCall
from pbkv_cluster.reuse.model.access_model import AccessUpdate
from pbkv_cluster.reuse.record.workflow_record import WorkflowRecord

EndListener = Callable[[AccessLog], None]
"""Told the log of a workflow, by the one cache among several that has had its last step. Steps that run go on writing to it."""

_ENDED = 1024  # workflows that are known to have ended, at most: a name of at most 256 bytes and an index each
_FRESH_S = 1.0  # age in seconds below which a forecast is taken to be about the current step


class ActiveWorkflows:
    """The workflows that have used the cache and have not ended, each an `Owner` of nodes."""

    def __init__(self, policies: Sequence[ReusePolicy], tiers: Tiers, clock: Clock) -> None:
        """Args:
        policies: of all tiers, each once.
        tiers: whose eviction queues are kept in order.
        clock: the engine's.
        """
        self._policies = policies
        self._tiers = tiers
        self._clock = clock
        self._owners: dict[str, Owner] = {}
        self._ended: OrderedDict[str, int] = OrderedDict()  # those that ended last: index of what was told of each last
        self.on_ended: EndListener | None = None
        self.recorded = any(each.needs_record for each in policies)  # whether a policy reads their records
        self.learns = any(each.learns for each in policies)  # whether a policy uses what is learnt from ended workflows
        self.uses_forecasts = any(each.uses_forecasts for each in policies)  # whether a policy uses forecasts
        self._steady = all(each.steady for each in policies)
        self._ranked_at_begin = self._overridden("step_began")
        self._ranked_when_queued = self._overridden("step_queued")
        self._ranked_at_end = self._overridden("step_ended")
        self._ranked_by_tools = self._overridden("tool_call")

    def __contains__(self, owner: Owner) -> bool:
        """Whether a workflow has not ended."""
        return self._owners.get(owner.id) is owner

    def find(self, workflow: str) -> Owner | None:
        """The owner for a workflow; None: it is not known here."""
        return self._owners.get(workflow)

    def heard(self, workflow: str) -> int:
        """Index of the latest event of a workflow that was told of steps elsewhere, also if it has ended since; -1: none."""
        owner = self._owners.get(workflow)
        return self._ended.get(workflow, -1) if owner is None else owner.heard

    def all(self) -> Collection[Owner]:
        """The owners."""
        return self._owners.values()

    def enter(self, workflow: str, graph: StepGraph | None, record: WorkflowRecord | None, now: float) -> Owner:
        """The owner for a workflow that has a step admitted; a new one for a workflow that is not known here.

        Args:
            workflow: its id.
            graph: declared by the client; None keeps the one that is known.
            record: the workflow's, if another cache keeps it; only a new owner takes it.
            now: seconds.
        """
        owner = self._owners.get(workflow)
        if owner is None:
            owner = self._owners[workflow] = Owner(workflow, record)
            owner.heard = self._ended.get(workflow, -1)
        self.touch(owner)
        owner.active_at = now
        if graph is not None:
            owner.graph = graph
        return owner

    def step_began(self, owner: Owner, step: StepIdentity, position: int, now: float) -> None:
        """A step was admitted.

        Args:
            owner: its workflow.
            step: which one.
            position: of the step in the workflow's record.
            now: seconds.
        """
        for policy in self._policies:
            policy.step_began(owner, step, now)
        # Any of the workflow's nodes may have another value now. If a forecast for this step has just arrived, it has ranked
        # them already; then only the nodes that this step uses are ranked again.
        ranked = not self._ranked_at_begin and owner.forecast is not None and owner.forecast_at >= now - _FRESH_S
        if self._steady:
            return
        nodes = {node: None for node in owner.nodes if not ranked or node.owners[owner].used_at[-1] == position}
        for policy in self._policies:
            for name in policy.due():
                if (due := self._owners.get(name)) is not None:
                    nodes |= due.nodes
        self._tiers.rerank(nodes)  # all at once: it costs little more than the nodes of one workflow

    def step_queued(self, workflow: str, number: int, tokens: bytes) -> None:
        """A step waits for admission; see `KVCache.queued`."""
        owner = self._owners.get(workflow)
        if owner is None or not self._ranked_when_queued:
            return
        segments = owner.record.match(tokens)
        for policy in self._policies:
            policy.step_queued(owner, number, segments, self._clock.now())
        self._rerank(owner)

    def step_ended(self, owner: Owner, now: float) -> None:
        """A step of a workflow has ended, or was preempted."""
        if owner not in self:
            return  # the workflow ended while its step ran
        self.touch(owner)
        for policy in self._policies:
            policy.step_ended(owner, now)
        if self._ranked_at_end:
            self._rerank(owner)

    def tool_call(self, workflow: str, call: ToolCall, started: bool) -> None:
        """A workflow has begun to wait for a tool, or no longer does. Without effect where the workflow is not known."""
        owner = self._owners.get(workflow)
        if owner is None:
            return
        self.touch(owner)
        if not self._ranked_by_tools:
            return
        for policy in self._policies:
            policy.tool_call(owner, call, started, self._clock.now())
        self._rerank(owner)

    def retire(self, workflow: str, logged: bool = True) -> None:
        """A workflow has ended and owns nothing any more. Nodes without another owner are retired.

        Args:
            workflow: its id.
            logged: it has ended, and `on_ended` is told, unless another cache has had its last step; else it may go on.
        """
        owner = self._owners.pop(workflow, None)
        if owner is None:
            return
        if logged and owner.heard >= 0:
            self._ended[workflow] = owner.heard
            self._ended.move_to_end(workflow)
            if len(self._ended) > _ENDED:
                self._ended.popitem(last=False)
        nodes, owner.nodes = owner.nodes, {}
        for node in nodes:
            del node.owners[owner]
        for policy in self._policies:
            policy.workflow_ended(owner, self._clock.now())
        for node in nodes:
            self._tiers.offer(node)
        # Every cache that ran a step of it has the whole record, and one of them reports it.
        steps = owner.record.steps
        if logged and self.on_ended is not None and steps and max(step.number for step in steps) not in owner.remote:
            self.on_ended(AccessLog(workflow, steps, owner.workload))

    def silent(self, lease_s: float) -> list[str]:
        """Ids of the workflows of which nothing was heard for longer than a lease and of which no step runs here.

        Args:
            lease_s: seconds.
        """
        oldest, silent = self._clock.now() - lease_s, list[Owner]()
        for owner in self._owners.values():
            if owner.heard_at >= oldest:
                break
            silent.append(owner)
        for owner in silent:
            if owner.running:
                self.touch(owner)
        return [owner.id for owner in silent if not owner.running]

    def touch(self, owner: Owner) -> None:
        """Something was heard of a workflow."""
        if owner in self:
            self._owners[owner.id] = self._owners.pop(owner.id)  # the latest
            owner.heard_at = self._clock.now()

    def learnt(self, update: AccessUpdate) -> None:
        """Passes on what has been learnt from ended workflows. It changes ranks only as further steps rank their nodes anew."""
        for policy in self._policies:
            policy.learnt(update)

    def expects(self, forecast: Forecast) -> bool:
        """Whether a forecast is about a workflow that is known here, and newer than the last."""
        owner = self._owners.get(forecast.workflow)
        return owner is not None and (owner.forecast is None or forecast.epoch > owner.forecast.epoch)

    def apply(self, forecast: Forecast) -> bool:
        """Applies a forecast. False if it is old, or the workflow not known here."""
        if not self.expects(forecast):
            return False
        owner = self._owners[forecast.workflow]
        owner.forecast, owner.forecast_at = forecast, self._clock.now()
        if forecast.workload:  # one that tells only that the workflow has ended has none
            owner.workload = forecast.workload
        changed = [policy.forecast_matters(owner) for policy in self._policies]  # a list: every policy has to see the forecast
        if any(changed):
            self._rerank(owner)
        return True

    def _rerank(self, owner: Owner) -> None:
        self._tiers.rerank(owner.nodes)

    def _overridden(self, hook: str) -> bool:
        return any(getattr(type(each), hook) is not getattr(ReusePolicy, hook) for each in self._policies)
