"""First-order transitions, P_ij = (C_ij + ε) / Σ_k (C_ik + ε) (CacheSage, arXiv 2605.27744), chained for later steps."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from pbkv_cluster.core.config import PredictorConfig
from pbkv_cluster.predictor_service.experts.arrays import counts_of, grown, renumbered
from pbkv_cluster.predictor_service.experts.base import Expert, Floats, TrainingExample
from pbkv_cluster.predictor_service.experts.labels import Labels
from pbkv_cluster.predictor_service.workflow.situation import END, Situation

MAX_ROW_COUNT = 1024.0  # transitions from one label; from there on its counts are halved, so that recent ones weigh more


class _State(NamedTuple):
    label: str  # of the latest step; END: none has started
    finished: bool


class MarkovExpert(Expert[_State]):
    """Counts which label follows which. Nothing follows the end, so its row counts the first steps of workflows."""

    def __init__(self, config: PredictorConfig, labels: Labels) -> None:
        super().__init__(config, labels)
        self._smoothing = config.smoothing
        self._counts: Floats = np.zeros((8, 8), dtype=np.float32)
        self._chain: Floats | None = None  # [label, K, column]

    def features(self, situation: Situation) -> _State:
        return _State(situation.agents[-1] if situation.agents else END, situation.finished)

    def forecast(self, features: Sequence[_State]) -> Floats:
        size = len(self.labels)
        if self._chain is None or self._chain.shape[2] != size:
            self._chain = self._chained(size)
        return self._chain[[self.labels.column(state.label) for state in features]]  # -1, a label that has left: the last row

    def learn(self, examples: Sequence[TrainingExample[_State]]) -> None:
        size = len(self.labels)
        self._counts = grown(self._counts, size, size)
        for example in examples:
            source, target = self.labels.column(example.features.label), example.targets[0]
            if source < 0 or target < 0 or example.features.finished:
                continue
            row = self._counts[source]
            row[target] += 1.0
            if row.sum() >= MAX_ROW_COUNT:
                row *= 0.5
            self._chain = None

    def renumber(self, columns: Sequence[int]) -> None:
        self._counts = renumbered(renumbered(self._counts, columns).T, columns).T.copy()
        self._chain = None

    def dump(self) -> dict[str, Any]:
        size = len(self.labels)
        return {"counts": grown(self._counts, size, size)[:size, :size]}

    def restore(self, state: dict[str, Any]) -> None:
        size = len(self.labels)
        self._counts, self._chain = counts_of(state, "counts", size, size), None

    def _chained(self, size: int) -> Floats:
        """Forecasts after each label, and in the last row after an unknown one, which are uniform."""
        counts = np.full((size + 1, size), self._smoothing, dtype=np.float32)
        known = self._counts[:size, :size]
        counts[: known.shape[0], : known.shape[1]] += known
        counts /= counts.sum(axis=1, keepdims=True)
        onward = counts[:size].copy()
        onward[0] = 0.0
        onward[0, 0] = 1.0  # the end absorbs
        steps = [counts]
        while len(steps) < self.horizon:
            steps.append(steps[-1] @ onward)
        return np.stack(steps, axis=1)
