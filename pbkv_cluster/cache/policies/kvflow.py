"""KVFlow's order of eviction: what the step graph says is needed last goes first (arXiv 2507.07400)."""

import math
from collections.abc import Mapping

from pbkv_cluster.cache.policies.base import POLICIES, ReusePolicy, current_forecast
from pbkv_cluster.cache.tree.node import Node, Owner
from pbkv_cluster.core.config import CacheConfig
from pbkv_cluster.core.forecasts.forecast import Forecast

_NOWHERE: Mapping[str, int] = {}


class _Course:
    """Where a workflow stands."""

    __slots__ = ("current", "forecast", "steps")

    def __init__(self) -> None:
        self.current: frozenset[str] = frozenset()  # agents of its graph that it goes on from
        self.forecast: Forecast | None = None  # what `steps` rest on where there is no graph
        self.steps: Mapping[str, int] = _NOWHERE  # to each agent's next execution; an agent that is missing is infinitely far


@POLICIES.register("kvflow")
class KvFlow(ReusePolicy):
    """Varying suffixes first, then fixed prompts; in either, the most steps to execution first.

    A node is as near as the nearest (workflow, agent) that holds it. A workflow that has declared a `StepGraph` is placed in it
    by the steps that begin; another is taken to follow its forecast's likeliest path: the likeliest agent 1, 2, ..., K steps
    ahead. An agent that is not on the way is infinitely far.

    Where the paper is silent: a fixed prompt is what several active workflows hold and no model generated, since nothing marks
    the end of an agent's prompt; and what ended workflows leave goes before all else, since no graph speaks of it.
    """

    retired_first = True

    def __init__(self, config: CacheConfig) -> None:
        del config
        self._courses: dict[Owner, _Course] = {}

    def step_began(self, owner: Owner, step: int, agent: str, now: float) -> None:
        if owner.graph is not None:
            course = self._course(owner)
            course.current = owner.graph.advance(course.current, agent)
            course.steps = owner.graph.steps_to_execution(course.current)

    def workflow_ended(self, owner: Owner, now: float) -> None:
        self._courses.pop(owner, None)

    def value(self, node: Node, now: float) -> float:
        nearest = math.inf
        for owner, access in node.owners.items():
            steps = self._steps(owner)
            for agent in access.agents:
                nearest = min(nearest, steps.get(agent, math.inf))
        fixed = len(node.owners) > 1 and not node.output
        return fixed + 1.0 / (1.0 + nearest)  # one number for the pair: the second lies between 0 and a half

    def _steps(self, owner: Owner) -> Mapping[str, int]:
        course = self._course(owner)
        if owner.graph is None:
            forecast = current_forecast(owner)
            if forecast is not course.forecast:
                course.forecast = forecast
                course.steps = _NOWHERE if forecast is None else _likeliest_path(forecast)
        return course.steps

    def _course(self, owner: Owner) -> _Course:
        course = self._courses.get(owner)
        if course is None:
            course = self._courses[owner] = _Course()
        return course


def _likeliest_path(forecast: Forecast) -> dict[str, int]:
    """Steps to the first position at which each agent is the likeliest; of two that are as likely the first by name is."""
    steps: dict[str, int] = {}
    for distance, step in enumerate(forecast.steps, start=1):
        if step.agents:
            agent = min(step.agents, key=lambda name: (-step.agents[name], name))
            steps.setdefault(agent, distance)
    return steps
