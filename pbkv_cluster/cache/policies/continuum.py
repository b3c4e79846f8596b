"""Continuum's time-to-live: blocks are kept through pauses that are likely to be short (arXiv 2511.02230)."""

import math
from collections import OrderedDict, deque
from collections.abc import Collection

from pbkv_cluster.cache.policies.base import POLICIES, ReusePolicy
from pbkv_cluster.cache.step_identity import StepIdentity
from pbkv_cluster.cache.tree.node import Node, Owner
from pbkv_cluster.core.config import CacheConfig

_PAUSES_MAX = 200  # latest pauses kept for each agent, and for all agents together
_PAUSES_MIN = 5  # pauses after an agent below which those after all agents are used instead
_MAX_AGENTS = 1024


class _Activity:
    """Steps of a workflow."""

    __slots__ = ("agent", "ended_at", "last_position", "running", "step", "ttl")

    def __init__(self) -> None:
        self.running = 0  # steps that run now
        self.step, self.agent = -1, ""  # of the step that began last
        self.ended_at: float | None = None  # when the last running step ended; None before the first
        self.last_position = -1  # of that step in the workflow's record
        self.ttl = 0.0  # seconds


class Pauses:
    """Latest pauses of workflows after each agent, in seconds; infinite where a workflow ended in a pause."""

    def __init__(self) -> None:
        self._by_agent: OrderedDict[str, deque[float]] = OrderedDict()
        self._all: deque[float] = deque(maxlen=_PAUSES_MAX)

    @property
    def agents(self) -> int:
        """How many agents are remembered."""
        return len(self._by_agent)

    def add(self, agent: str, seconds: float) -> None:
        sample = self._by_agent.setdefault(agent, deque(maxlen=_PAUSES_MAX))
        self._by_agent.move_to_end(agent)
        if len(self._by_agent) > _MAX_AGENTS:
            self._by_agent.popitem(last=False)
        sample.append(seconds)
        self._all.append(seconds)

    def after(self, agent: str) -> Collection[float]:
        """The pauses after an agent; after all agents if it has too few."""
        sample = self._by_agent.get(agent, ())
        return sample if len(sample) >= _PAUSES_MIN else self._all


def best_ttl(pauses: Collection[float], benefit: float) -> float:
    """The time tau that maximises P(pause <= tau) * benefit - tau, the shortest if there are several; 0 if none gains anything.

    Args:
        pauses: a sample, in seconds.
        benefit: value of a hit, in seconds for which its blocks are kept.
    """
    best, ttl = 0.0, 0.0
    for position, tau in enumerate(sorted(pauses), start=1):
        # P jumps at each pause in the sample, and between them only the cost grows: no other tau can be the best.
        gain = position / len(pauses) * benefit - tau
        if gain > best:
            best, ttl = gain, tau
    return ttl


@POLICIES.register("continuum")
class Continuum(ReusePolicy):
    """Blocks that expire first are evicted first. They expire a time-to-live after a step of their workflow last used them.

    When a step ends, the time-to-live of its workflow's blocks is the tau that maximises P(pause <= tau) * benefit - tau over
    the latest pauses after the same agent. The benefit is `cache.continuum_benefit_s`: the blocks that a hit saves are those
    that were kept, so their number cancels out.

    A node's value is the time at which it expires, which does not drift. Blocks that have not expired outrank all that have,
    and none is pinned: if none has expired, the one that expires first is evicted. Among expired blocks the order is by the
    time of expiry, which is LRU if the times-to-live are equal.

    Where the paper is silent, or where this differs: a workflow that ended in a pause counts as an infinite pause; an agent
    with too few pauses is treated like all agents together (the paper assumes an exponential distribution); before the first
    pause this is LRU; retired blocks are evicted first, since no pause ends for them. Steps of a workflow that run at the same
    time count as one step, which ends with the last of them and belongs to the agent that began last.
    """

    retired_first = True
    uses_forecasts = False

    def __init__(self, config: CacheConfig) -> None:
        self._benefit = config.continuum_benefit_s
        self.pauses = Pauses()
        self._activities: dict[Owner, _Activity] = {}

    def step_began(self, owner: Owner, step: StepIdentity, now: float) -> None:
        activity = self._activities.get(owner)
        if activity is None:
            activity = self._activities[owner] = _Activity()
        resumed = (step.number, step.agent) == (activity.step, activity.agent)  # after a preemption, which is no pause
        if activity.running == 0 and activity.ended_at is not None and not resumed:
            self.pauses.add(activity.agent, now - activity.ended_at)
        activity.running += 1
        activity.step, activity.agent = step.number, step.agent

    def step_ended(self, owner: Owner, now: float) -> None:
        activity = self._activities[owner]
        activity.running -= 1
        if activity.running == 0:
            activity.ended_at, activity.last_position = now, len(owner.record.steps) - 1
            activity.ttl = best_ttl(self.pauses.after(activity.agent), self._benefit)

    def workflow_ended(self, owner: Owner, now: float) -> None:
        activity = self._activities.pop(owner)
        if activity.running == 0:
            self.pauses.add(activity.agent, math.inf)

    def value(self, node: Node, now: float) -> float:
        expires = node.last_access
        for owner, segment in node.owners.items():
            activity = self._activities.get(owner)
            if activity is not None and activity.ended_at is not None:
                # The last step used its blocks until it ended.
                used = activity.ended_at if segment.used_at[-1] >= activity.last_position else node.last_access
                expires = max(expires, used + activity.ttl)
        return expires
