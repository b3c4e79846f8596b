"""Continuum's time-to-live: blocks stay through the pauses that are likely to be short (arXiv 2511.02230)."""

import math
from collections import OrderedDict, deque
from collections.abc import Collection

from pbkv_cluster.cache.policies.base import POLICIES, ReusePolicy
from pbkv_cluster.cache.tree.node import Node, Owner
from pbkv_cluster.core.config import CacheConfig

_SAMPLE = 200  # latest pauses remembered, after each agent and after all
_ENOUGH = 5  # pauses after an agent that say more about it than those after all agents do
_MAX_AGENTS = 1024


class _Course:
    """What a workflow does."""

    __slots__ = ("agent", "ended_at", "last_position", "running", "step", "ttl")

    def __init__(self) -> None:
        self.running = 0  # steps
        self.step, self.agent = -1, ""  # the one that began last
        self.ended_at: float | None = None  # when the last step to run ended; None before the first
        self.last_position = -1  # the number of that step
        self.ttl = 0.0  # seconds


class Pauses:
    """How long workflows lately paused after each agent, in seconds; infinite for those that never went on."""

    def __init__(self) -> None:
        self._by_agent: OrderedDict[str, deque[float]] = OrderedDict()
        self._all: deque[float] = deque(maxlen=_SAMPLE)

    def add(self, agent: str, seconds: float) -> None:
        sample = self._by_agent.setdefault(agent, deque(maxlen=_SAMPLE))
        self._by_agent.move_to_end(agent)
        if len(self._by_agent) > _MAX_AGENTS:
            self._by_agent.popitem(last=False)
        sample.append(seconds)
        self._all.append(seconds)

    def after(self, agent: str) -> Collection[float]:
        """The pauses after an agent; after all agents where it has too few."""
        sample = self._by_agent.get(agent, ())
        return sample if len(sample) >= _ENOUGH else self._all


def best_ttl(pauses: Collection[float], benefit: float) -> float:
    """The time tau that maximises P(pause <= tau) * benefit - tau; 0 if nothing is gained. The shortest of several.

    Args:
        pauses: a sample, in seconds.
        benefit: what it is worth that blocks are still there, in seconds of holding them.
    """
    best, ttl = 0.0, 0.0
    for position, tau in enumerate(sorted(pauses), start=1):
        # P jumps at each pause that was seen, and between them only the cost grows: nothing else can be the best.
        gain = position / len(pauses) * benefit - tau
        if gain > best:
            best, ttl = gain, tau
    return ttl


@POLICIES.register("continuum")
class Continuum(ReusePolicy):
    """What expires first goes first: blocks expire a time-to-live after a step of their workflow last used them.

    When a step ends, the time tau for which all that its workflow holds is kept is the one that maximises
    P(the pause is over within tau) * benefit - tau, by the latest pauses after the same agent. The benefit is
    `cache.continuum_benefit_s`: blocks saved and blocks held are the same ones, so their number cancels out.

    A node's value is the moment at which it expires, which time alone does not change. So at any moment all that is within its
    time-to-live outranks all that is beyond it, and nothing is pinned hard: when all are within, the one that expires first
    goes. Beyond it the order is by how long ago each expired, which is LRU where the times-to-live are equal, or 0.

    Where the paper is silent, or does otherwise: a workflow that ended in a pause counts as one that never went on; an agent
    with too few pauses is taken to be like all (the paper assumes an exponential distribution), and before the first pause
    this is LRU; what ended workflows leave goes first, as there is no pause left to wait for. Steps of a workflow that run at
    the same time count as one, which ends with the last of them and is of the agent that began last.
    """

    retired_first = True
    heeds_forecasts = False

    def __init__(self, config: CacheConfig) -> None:
        self._benefit = config.continuum_benefit_s
        self._pauses = Pauses()
        self._courses: dict[Owner, _Course] = {}

    def step_began(self, owner: Owner, step: int, agent: str, now: float) -> None:
        course = self._courses.get(owner)
        if course is None:
            course = self._courses[owner] = _Course()
        resumed = (step, agent) == (course.step, course.agent)  # it was preempted: that was no pause
        if course.running == 0 and course.ended_at is not None and not resumed:
            self._pauses.add(course.agent, now - course.ended_at)
        course.running += 1
        course.step, course.agent = step, agent

    def step_ended(self, owner: Owner, now: float) -> None:
        course = self._courses[owner]
        course.running -= 1
        if course.running == 0:
            course.ended_at, course.last_position = now, len(owner.record.steps) - 1
            course.ttl = best_ttl(self._pauses.after(course.agent), self._benefit)

    def workflow_ended(self, owner: Owner, now: float) -> None:
        course = self._courses.pop(owner)
        if course.running == 0:
            self._pauses.add(course.agent, math.inf)

    def value(self, node: Node, now: float) -> float:
        expires = node.last_access
        for owner, access in node.owners.items():
            course = self._courses.get(owner)
            if course is not None and course.ended_at is not None:
                # The step that ended last used its blocks until its end.
                used = course.ended_at if access.used_at[-1] >= course.last_position else node.last_access
                expires = max(expires, used + course.ttl)
        return expires
