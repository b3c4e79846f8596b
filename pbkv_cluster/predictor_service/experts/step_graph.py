"""Forecasts from the step graph that the client declared (KVFlow, arXiv 2507.07400), its branches weighed by their counts.

Each agent that may run next, and the end, has P = (c + a·w) / (n + a): it followed the latest agent c of n times, w is its
share of the weights that `GraphWalk.enabled` gives, and a = 1. A part of the probability, learnt too, goes to what the graph
does not allow. Later steps follow the graph: a beam search over positions in it, which keeps the likeliest 32 from step to
step. Graphs that people draw have few branches, so these are mostly all of them. Where they are not, each of the others has
less than 1/32 of the probability, and what follows them is taken to be like what follows those kept.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from pbkv_cluster.core.config import PredictorConfig
from pbkv_cluster.predictor_service.experts.arrays import counts_of, grown, renumbered
from pbkv_cluster.predictor_service.experts.base import Expert, Floats, TrainingExample
from pbkv_cluster.predictor_service.experts.labels import Labels
from pbkv_cluster.predictor_service.workflow.graph_walk import GraphWalk
from pbkv_cluster.predictor_service.workflow.situation import END, Situation

MAX_ROW_COUNT = 1024.0  # transitions from one label; from there on its counts are halved, so that recent ones weigh more
BEAM = 32

_PRIOR = 1.0
_END_WEIGHT = 0.1  # of the end while the graph has agents to run
_PRIOR_WRONG, _PRIOR_CHECKED = 0.5, 10.0  # imaginary steps that the graph did not allow, and all imaginary steps
_MAX_CACHED = 4096


class _State(NamedTuple):
    walk: GraphWalk
    label: str  # of the latest step; END: none has started
    finished: bool


class StepGraphExpert(Expert[_State | None]):
    """Abstains if no graph was declared."""

    def __init__(self, config: PredictorConfig, labels: Labels) -> None:
        super().__init__(config, labels)
        self._counts: Floats = np.zeros((8, 8), dtype=np.float32)
        self._checked = 0.0  # steps compared with the graph
        self._wrong = 0.0  # of these, steps that the graph did not allow
        self._next: dict[GraphWalk, list[tuple[str, float, GraphWalk]]] = {}  # see `_next_agents`
        self._forecasts: dict[tuple[GraphWalk, str], Floats] = {}  # with the present counts and columns
        self._columns = 0

    def features(self, situation: Situation) -> _State | None:
        if situation.walk is None:
            return None
        return _State(situation.walk, situation.agents[-1] if situation.agents else END, situation.finished)

    def forecast(self, features: Sequence[_State | None]) -> Floats:
        size = len(self.labels)
        if not any(features):
            return np.zeros((len(features), self.horizon, size), dtype=np.float32)
        if self._columns != size or len(self._forecasts) > _MAX_CACHED:
            self._forecasts.clear()
            self._columns = size
        self._counts = grown(self._counts, size, size)
        found = np.zeros((len(features), self.horizon, size), dtype=np.float32)
        for at, state in enumerate(features):
            if state is None:
                continue
            walk, label, _ = state
            row = self._forecasts.get((walk, label))
            if row is None:
                row = self._forecasts[walk, label] = self._ahead(walk, label, size)
            found[at] = row
        return found

    def learn(self, examples: Sequence[TrainingExample[_State | None]]) -> None:
        self._counts = grown(self._counts, len(self.labels), len(self.labels))
        for example in examples:
            if example.features is None:
                continue
            walk, label, finished = example.features
            source, target = self.labels.column(label), example.targets[0]
            if finished or source < 0 or target < 0:
                continue
            row = self._counts[source]
            row[target] += 1.0
            if row.sum() >= MAX_ROW_COUNT:
                row *= 0.5
            name = self.labels.names[target]
            self._checked += 1.0
            self._wrong += name != END and all(name != agent for agent, _, _ in self._next_agents(walk))
            if self._checked >= MAX_ROW_COUNT:
                self._checked, self._wrong = self._checked / 2, self._wrong / 2
            self._forecasts.clear()

    def renumber(self, columns: Sequence[int]) -> None:
        self._counts = renumbered(renumbered(self._counts, columns).T, columns).T.copy()
        self._forecasts.clear()

    def dump(self) -> dict[str, Any]:
        size = len(self.labels)
        counts = grown(self._counts, size, size)[:size, :size]
        return {"counts": counts, "checked": self._checked, "wrong": self._wrong}

    def restore(self, state: dict[str, Any]) -> None:
        checked, wrong = state.get("checked"), state.get("wrong")
        if not isinstance(checked, float) or not isinstance(wrong, float) or not 0 <= wrong <= checked <= MAX_ROW_COUNT:
            raise ValueError("counts of steps that graphs did not allow do not fit")
        size = len(self.labels)
        self._counts, self._checked, self._wrong = counts_of(state, "counts", size, size), checked, wrong
        self._forecasts.clear()

    def _ahead(self, walk: GraphWalk, label: str, size: int) -> Floats:
        rows = np.zeros((self.horizon, size), dtype=np.float32)
        wrong = (self._wrong + _PRIOR_WRONG) / (self._checked + _PRIOR_CHECKED)  # probability of a step that is not allowed
        beam: dict[tuple[GraphWalk, int], float] = {(walk, self.labels.column(label)): 1.0}
        ended = 0.0  # probability that the workflow has ended
        for row in rows:
            allowed = np.zeros(size, dtype=np.float32)
            if not beam:  # nothing is left to run in the graph
                allowed[0] = 1.0 - ended
                row += wrong * (1.0 - ended) / size
            following: dict[tuple[GraphWalk, int], float] = {}
            total = sum(beam.values())
            for (position, source), weight in beam.items():
                share = (1.0 - ended) * weight / total
                counts = self._counts[source, :size] if source >= 0 else np.zeros(size, dtype=np.float32)
                row += wrong * share * (counts + _PRIOR / size) / (counts.sum() + _PRIOR)
                for column, probability, after in self._choices(position, counts):
                    allowed[column] += share * probability
                    if after is not None:
                        following[after, column] = following.get((after, column), 0.0) + share * probability
            row += (1.0 - wrong) * allowed
            row[0] += ended
            ended = float(row[0])
            row /= row.sum()
            beam = dict(sorted(following.items(), key=lambda item: -item[1])[:BEAM])
        return rows

    def _choices(self, position: GraphWalk, counts: Floats) -> list[tuple[int, float, GraphWalk | None]]:
        """Column, probability and next position of each agent that may run next, and of the end."""
        agents = [(self.labels.column(agent), weight, after) for agent, weight, after in self._next_agents(position)]
        known: list[tuple[int, float, GraphWalk | None]] = [each for each in agents if each[0] > 0]
        known.append((0, _END_WEIGHT if any(weight == 1.0 for _, weight, _ in agents) else 1.0, None))
        weights = sum(weight for _, weight, _ in known)
        total = sum(float(counts[column]) for column, _, _ in known)
        return [
            (column, (float(counts[column]) + _PRIOR * weight / weights) / (total + _PRIOR), after)
            for column, weight, after in known
        ]

    def _next_agents(self, position: GraphWalk) -> list[tuple[str, float, GraphWalk]]:
        """Name, weight and next position of each agent that may run next."""
        agents = self._next.get(position)
        if agents is None:
            if len(self._next) >= _MAX_CACHED:
                self._next.clear()
            agents = [(agent, weight, position.after(agent)) for agent, weight in position.enabled().items()]
            self._next[position] = agents
        return agents
