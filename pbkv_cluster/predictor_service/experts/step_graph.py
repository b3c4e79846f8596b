"""Forecasts from the step graph that the client declared (KVFlow, arXiv 2507.07400), its branches weighed by what was seen.

Of the agents whose turn it may be, and the end, each has P = (c + a·w) / (n + a): c of n times it followed the latest agent, w
its share of the weights that `GraphWalk.enabled` gives, a = 1. A share of the probability, learnt too, is for what the graph
does not foresee. Further steps follow the graph: a chain over the places in it, of which the likeliest 32 are carried on from
step to step. Graphs that people draw have few branches, so that these are mostly all; where they are not, what lies behind the
others is taken to be like what lies behind these, and each of the others has less than 1/32 of the probability.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from pbkv_cluster.core.config import PredictorConfig
from pbkv_cluster.predictor_service.experts.arrays import counts_of, grown, renumbered
from pbkv_cluster.predictor_service.experts.base import Expert, Floats, Lesson
from pbkv_cluster.predictor_service.workflow.graph_walk import GraphWalk
from pbkv_cluster.predictor_service.workflow.situation import END, Situation
from pbkv_cluster.predictor_service.workload.labels import Labels

ROW_LIMIT = 1024.0  # a state left this often has its counts halved: what happened lately weighs more
PLACES = 32

_PRIOR = 1.0
_END = 0.1  # weight of the end while the graph has something to run
_UNFORESEEN = (0.5, 10.0)  # times that the graph was wrong, of so many, before anything is seen
_MOST_CACHED = 4096


class _State(NamedTuple):
    walk: GraphWalk
    label: str  # of the latest step; END: none has begun
    finished: bool


class StepGraphExpert(Expert[_State | None]):
    """Abstains where no graph was declared."""

    def __init__(self, config: PredictorConfig, labels: Labels) -> None:
        super().__init__(config, labels)
        self._counts: Floats = np.zeros((8, 8), dtype=np.float32)
        self._checked = 0.0  # steps that came behind a known place
        self._wrong = 0.0  # of them, those that the graph did not foresee
        self._turns: dict[GraphWalk, list[tuple[str, float, GraphWalk]]] = {}
        self._cache: dict[tuple[GraphWalk, str], Floats] = {}  # of the present counts and columns
        self._columns = 0

    def features(self, situation: Situation) -> _State | None:
        if situation.walk is None:
            return None
        return _State(situation.walk, situation.agents[-1] if situation.agents else END, situation.finished)

    def forecast(self, features: Sequence[_State | None]) -> Floats:
        size = len(self.labels)
        if not any(features):
            return np.zeros((len(features), self.horizon, size), dtype=np.float32)
        if self._columns != size or len(self._cache) > _MOST_CACHED:
            self._cache.clear()
            self._columns = size
        self._counts = grown(self._counts, size, size)
        found = np.zeros((len(features), self.horizon, size), dtype=np.float32)
        for at, state in enumerate(features):
            if state is None:
                continue
            walk, label, _ = state
            row = self._cache.get((walk, label))
            if row is None:
                row = self._cache[walk, label] = self._ahead(walk, label, size)
            found[at] = row
        return found

    def learn(self, lessons: Sequence[Lesson[_State | None]]) -> None:
        self._counts = grown(self._counts, len(self.labels), len(self.labels))
        for lesson in lessons:
            if lesson.features is None:
                continue
            walk, label, finished = lesson.features
            source, target = self.labels.column(label), lesson.targets[0]
            if finished or source < 0 or target < 0:
                continue
            row = self._counts[source]
            row[target] += 1.0
            if row.sum() >= ROW_LIMIT:
                row *= 0.5
            came = self.labels.names[target]
            self._checked += 1.0
            self._wrong += came != END and all(came != agent for agent, _, _ in self._turn(walk))
            if self._checked >= ROW_LIMIT:
                self._checked, self._wrong = self._checked / 2, self._wrong / 2
            self._cache.clear()

    def keep(self, columns: Sequence[int]) -> None:
        self._counts = renumbered(renumbered(self._counts, columns).T, columns).T.copy()
        self._cache.clear()

    def dump(self) -> dict[str, Any]:
        size = len(self.labels)
        counts = grown(self._counts, size, size)[:size, :size]
        return {"counts": counts, "checked": self._checked, "wrong": self._wrong}

    def restore(self, state: dict[str, Any]) -> None:
        checked, wrong = state.get("checked"), state.get("wrong")
        if not isinstance(checked, float) or not isinstance(wrong, float) or not 0 <= wrong <= checked <= ROW_LIMIT:
            raise ValueError("the times that graphs were wrong do not fit")
        size = len(self.labels)
        self._counts, self._checked, self._wrong = counts_of(state, "counts", size, size), checked, wrong
        self._cache.clear()

    def _ahead(self, walk: GraphWalk, label: str, size: int) -> Floats:
        rows = np.zeros((self.horizon, size), dtype=np.float32)
        often, of = _UNFORESEEN
        unforeseen = (self._wrong + often) / (self._checked + of)
        places: dict[tuple[GraphWalk, int], float] = {(walk, self.labels.column(label)): 1.0}
        over = 0.0  # probability that the workflow has ended
        for row in rows:
            foreseen = np.zeros(size, dtype=np.float32)
            if not places:  # the graph is at its end, whatever ran beside it
                foreseen[0] = 1.0 - over
                row += unforeseen * (1.0 - over) / size
            behind: dict[tuple[GraphWalk, int], float] = {}
            total = sum(places.values())
            for (place, source), chance in places.items():
                share = (1.0 - over) * chance / total
                seen = self._counts[source, :size] if source >= 0 else np.zeros(size, dtype=np.float32)
                row += unforeseen * share * (seen + _PRIOR / size) / (seen.sum() + _PRIOR)
                for column, each, onward in self._choices(place, seen):
                    foreseen[column] += share * each
                    if onward is not None:
                        behind[onward, column] = behind.get((onward, column), 0.0) + share * each
            row += (1.0 - unforeseen) * foreseen
            row[0] += over
            over = float(row[0])
            row /= row.sum()
            places = dict(sorted(behind.items(), key=lambda item: -item[1])[:PLACES])
        return rows

    def _choices(self, place: GraphWalk, seen: Floats) -> list[tuple[int, float, GraphWalk | None]]:
        """Column, probability and next place of each agent whose turn it may be, and of the end."""
        turn = [(self.labels.column(agent), weight, onward) for agent, weight, onward in self._turn(place)]
        known: list[tuple[int, float, GraphWalk | None]] = [each for each in turn if each[0] > 0]
        known.append((0, _END if any(weight == 1.0 for _, weight, _ in turn) else 1.0, None))
        weights = sum(weight for _, weight, _ in known)
        counts = sum(float(seen[column]) for column, _, _ in known)
        return [
            (column, (float(seen[column]) + _PRIOR * weight / weights) / (counts + _PRIOR), onward)
            for column, weight, onward in known
        ]

    def _turn(self, place: GraphWalk) -> list[tuple[str, float, GraphWalk]]:
        turn = self._turns.get(place)
        if turn is None:
            if len(self._turns) >= _MOST_CACHED:
                self._turns.clear()
            turn = [(agent, weight, place.after(agent)) for agent, weight in place.enabled().items()]
            self._turns[place] = turn
        return turn
