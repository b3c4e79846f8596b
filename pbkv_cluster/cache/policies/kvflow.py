"""KVFlow's order of eviction: what the step graph says is needed last is evicted first (arXiv 2507.07400)."""

import math
from collections.abc import Mapping

from pbkv_cluster.cache.policies.base import POLICIES, ReusePolicy, current_forecast
from pbkv_cluster.cache.step_identity import StepIdentity
from pbkv_cluster.cache.tree.node import Node, Owner
from pbkv_cluster.core.config import CacheConfig
from pbkv_cluster.core.forecasts.forecast import Forecast

_NOWHERE: Mapping[str, int] = {}


class _Progress:
    """Where a workflow is in its step graph or forecast."""

    __slots__ = ("current", "forecast", "steps")

    def __init__(self) -> None:
        self.current: frozenset[str] = frozenset()  # agents of its graph that have just run
        self.forecast: Forecast | None = None  # that `steps` were computed from, if there is no graph
        self.steps: Mapping[str, int] = _NOWHERE  # to the next execution of each agent; infinite for others


@POLICIES.register("kvflow")
class KvFlow(ReusePolicy):
    """Varying suffixes are evicted before fixed prompts; among either, those with the most steps to execution first.

    Steps to execution of a node are the fewest of any (workflow, agent) that has used it. For a workflow with a `StepGraph`
    they follow from its place in the graph. Other workflows are taken to follow their forecast's likeliest path: the likeliest
    agent 1, 2, ..., K steps ahead. An agent that is not on the path is infinitely far.

    Where the paper is silent: blocks count as a fixed prompt if several active workflows own them and no model generated them,
    since nothing marks the end of an agent's prompt; and retired blocks are evicted first, since no graph mentions them.
    """

    retired_first = True

    def __init__(self, config: CacheConfig) -> None:
        del config
        self._progress: dict[Owner, _Progress] = {}

    def step_began(self, owner: Owner, step: StepIdentity, now: float) -> None:
        if owner.graph is not None:
            progress = self._progress_of(owner)
            progress.current = owner.graph.advance(progress.current, step.agent)
            progress.steps = owner.graph.steps_to_execution(progress.current)

    def workflow_ended(self, owner: Owner, now: float) -> None:
        self._progress.pop(owner, None)

    def value(self, node: Node, now: float) -> float:
        nearest = math.inf
        for owner, segment in node.owners.items():
            steps = self._steps(owner)
            for agent in segment.agents:
                nearest = min(nearest, steps.get(agent, math.inf))
        fixed = len(node.owners) > 1 and not node.output
        return fixed + 1.0 / (1.0 + nearest)  # one number for the pair: the second part is in (0, 0.5]

    def _steps(self, owner: Owner) -> Mapping[str, int]:
        progress = self._progress_of(owner)
        if owner.graph is None:
            forecast = current_forecast(owner)
            if forecast is not progress.forecast:
                progress.forecast = forecast
                progress.steps = _NOWHERE if forecast is None else _likeliest_path(forecast)
        return progress.steps

    def _progress_of(self, owner: Owner) -> _Progress:
        progress = self._progress.get(owner)
        if progress is None:
            progress = self._progress[owner] = _Progress()
        return progress


def _likeliest_path(forecast: Forecast) -> dict[str, int]:
    """Steps until each agent is first the likeliest one. Of two that are equally likely, the first by name counts."""
    steps: dict[str, int] = {}
    for distance, step in enumerate(forecast.steps, start=1):
        if step.agents:
            agent = min(step.agents, key=lambda name: (-step.agents[name], name))
            steps.setdefault(agent, distance)
    return steps
