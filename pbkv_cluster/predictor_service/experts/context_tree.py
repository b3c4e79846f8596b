"""A variable-order model of agents: counts of what came behind each context, smoothed towards the shorter ones.

Contexts are the last 0 to 8 agents, and last of all the step's number with the last 8. Each horizon has counts of its own: who
comes in two steps is counted, not derived. P_d = (c + a·P_{d-1}) / (n + a) with a = 4, from the uniform distribution up: the
Dirichlet prior form of back-off (MacKay and Peto, Natural Language Engineering 1(3), 1995).
"""

from collections.abc import Sequence
from typing import Any, NamedTuple
from zlib import crc32

import numpy as np

from pbkv_cluster.core.config import PredictorConfig
from pbkv_cluster.predictor_service.experts.arrays import counts_of, grown, renumbered
from pbkv_cluster.predictor_service.experts.base import Expert, Floats, Lesson
from pbkv_cluster.predictor_service.labels import Labels
from pbkv_cluster.predictor_service.situation import Situation

DEPTH = 8

_PRIOR = 4.0
_MOST_COUNTS = 8 << 20  # four bytes each: rows times horizons times columns


class _Contexts(NamedTuple):
    keys: tuple[int, ...]  # hashes, the shortest context first
    finished: bool


class ContextTree(Expert[_Contexts]):
    """Counts by context. When there are too many contexts, the longer half unseen leaves."""

    def __init__(self, config: PredictorConfig, labels: Labels) -> None:
        super().__init__(config, labels)
        self._rows: dict[int, int] = {}  # of contexts, longest unseen first; row 0 is of none, and has no counts
        self._counts: Floats = np.zeros((64, self.horizon, 8), dtype=np.float32)
        self._totals: Floats = self._counts.sum(axis=2)  # kept up with the counts: adding up short rows is slow

    def features(self, situation: Situation) -> _Contexts:
        text, keys = b"", [0]
        recent = situation.agents[-DEPTH:]
        for label in reversed(recent):
            text += label.encode() + b"\0"
            keys.append(crc32(text))
        if len(recent) < DEPTH:
            keys.append(crc32(text + b"\1"))  # the whole way from the start
        keys.append(crc32(text + b"\2%d" % situation.step))
        return _Contexts(tuple(keys), situation.finished)

    def forecast(self, features: Sequence[_Contexts]) -> Floats:
        size = len(self.labels)
        self._fit()
        keys = [each.keys for each in features]
        deepest = max(map(len, keys))
        find = self._rows.get
        rows = np.array([[find(key, 0) for key in each] + [0] * (deepest - len(each)) for each in keys], dtype=np.intp)
        # Each level's share of what comes out is its own times what all the longer ones leave to it.
        divisors = self._totals[rows] + _PRIOR
        left = np.cumprod(_PRIOR / divisors[:, ::-1], axis=1)[:, ::-1]
        shares = 1.0 / divisors
        shares[:, :-1] *= left[:, 1:]
        found: Floats = np.einsum("ndkc,ndk->nkc", self._counts[rows, :, :size], shares)
        found += (left[:, 0] / size)[:, :, None]
        return found

    def learn(self, lessons: Sequence[Lesson[_Contexts]]) -> None:
        self._fit()
        rows, steps, columns = list[int](), list[int](), list[int]()
        for lesson in lessons:
            if lesson.features.finished:  # it knows no more than the same situation did before its output
                continue
            keys = lesson.features.keys
            if len(self._rows) + len(keys) >= self._most_rows():
                self._add(rows, steps, columns)  # before rows are renumbered
                rows, steps, columns = [], [], []
                self._forget()
            for key in keys:
                row = self._rows.pop(key, None) or len(self._rows) + 1
                self._rows[key] = row
                for step, target in enumerate(lesson.targets):
                    if target >= 0:
                        rows.append(row)
                        steps.append(step)
                        columns.append(target)
        self._add(rows, steps, columns)

    def keep(self, columns: Sequence[int]) -> None:
        self._counts = renumbered(self._counts, columns)
        self._totals = self._counts.sum(axis=2)

    def dump(self) -> dict[str, Any]:
        kept = list(self._rows)
        counts = grown(self._counts, 1, self.horizon, len(self.labels))[
            [self._rows[key] for key in kept], :, : len(self.labels)
        ]
        return {"keys": kept, "counts": counts}

    def restore(self, state: dict[str, Any]) -> None:
        keys = state.get("keys")
        if not isinstance(keys, list) or not all(type(key) is int for key in keys) or len(set(keys)) != len(keys):
            raise ValueError("keys must be distinct numbers")
        counts = counts_of(state, "counts", len(keys), self.horizon, len(self.labels))
        self._rows = {key: at for at, key in enumerate(keys, start=1)}
        self._counts = np.concatenate([np.zeros_like(counts[:1], shape=(1, *counts.shape[1:])), counts])
        self._totals = self._counts.sum(axis=2)

    def _fit(self) -> None:
        """Makes room for all labels."""
        self._counts = grown(self._counts, 1, self.horizon, len(self.labels))

    def _most_rows(self) -> int:
        return _MOST_COUNTS // int(self._counts[0].size)

    def _add(self, rows: list[int], steps: list[int], columns: list[int]) -> None:
        self._counts = grown(self._counts, len(self._rows) + 1, *self._counts.shape[1:])
        self._totals = grown(self._totals, len(self._counts), self.horizon)
        if rows:
            np.add.at(self._counts, (rows, steps, columns), 1.0)
            np.add.at(self._totals, (rows, steps), 1.0)

    def _forget(self) -> None:
        kept = list(self._rows)[len(self._rows) // 2 :]
        counts = self._counts[[0, *(self._rows[key] for key in kept)]]
        self._counts[:] = 0.0
        self._counts[: len(counts)] = counts
        self._totals = self._counts.sum(axis=2)
        self._rows = {key: at for at, key in enumerate(kept, start=1)}
