"""A linear model of everything that is known: agents, counters, call sites, lengths, the prompt's pieces, words. It learns with
every step.

With each new lesson some former ones are learnt again, so that few workflows teach much (experience replay: Lin, Machine
Learning 8, 1992).
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from pbkv_cluster.core.config import PredictorConfig
from pbkv_cluster.predictor_service.experts.base import Expert, Floats, Lesson
from pbkv_cluster.predictor_service.experts.column_places import ColumnPlaces
from pbkv_cluster.predictor_service.experts.situation_hashes import HASHES, VALUES, record_of, split
from pbkv_cluster.predictor_service.experts.softmax_table import SoftmaxTable
from pbkv_cluster.predictor_service.workflow.situation import Situation
from pbkv_cluster.predictor_service.workload.labels import Labels

REPLAYS = 3  # former lessons that are learnt again with each new one
RECENT_LESSONS = 4096  # of which they are drawn
_KEPT_LESSONS = 512  # of these, that are saved: a fifth of a megabyte

_NEW = 1.5  # times that a new lesson counts as much as one that is learnt again
_TOGETHER = 16  # new lessons that make one step of gradient descent
_SEED = 1


class Linear(Expert[bytes]):
    """A softmax for each of the K steps; situations before an output and behind it share no features."""

    def __init__(self, config: PredictorConfig, labels: Labels) -> None:
        super().__init__(config, labels)
        self._table = SoftmaxTable(HASHES, self.horizon, VALUES)
        self._places = ColumnPlaces()
        self._recent: list[Lesson[bytes]] = []  # a ring, once it is full
        self._oldest = 0
        self._forget_lessons()

    def features(self, situation: Situation) -> bytes:
        return record_of(situation)

    def forecast(self, features: Sequence[bytes]) -> Floats:
        self._places.grow(len(self.labels))
        return self._places.spread(self._table.forecast(_joined(features), len(features), self._places.size))

    def learn(self, lessons: Sequence[Lesson[bytes]]) -> None:
        self._places.grow(len(self.labels))
        for start in range(0, len(lessons), _TOGETHER):
            self._learn(lessons[start : start + _TOGETHER])
        anew = self._places.exchange()
        if anew is not None:
            self._table.keep([-1 if place == anew else place for place in range(self._places.size)])

    def keep(self, columns: Sequence[int]) -> None:
        self._table.keep(self._places.keep(columns))
        now = {former: column for column, former in enumerate(columns)}
        self._recent = [Lesson(each.features, tuple(now.get(column, -1) for column in each.targets)) for each in self._recent]

    def dump(self) -> dict[str, Any]:
        latest = [*self._recent[self._oldest :], *self._recent[: self._oldest]][-_KEPT_LESSONS:]
        return {
            "places": self._places.dump(len(self.labels)),
            "table": self._table.dump(self._places.size),
            "records": _joined([lesson.features for lesson in latest]),
            "targets": np.array([lesson.targets for lesson in latest], dtype=np.int32).reshape(-1, self.horizon),
        }

    def restore(self, state: dict[str, Any]) -> None:
        parts = [state.get(name) for name in ("places", "table")]
        if not all(isinstance(part, dict) for part in parts):
            raise ValueError("places or table are missing")
        places = ColumnPlaces.restore(parts[0] or {}, len(self.labels))
        table = SoftmaxTable.restore(parts[1] or {}, HASHES, self.horizon, VALUES, places.size)
        lessons = self._restored(state.get("records"), state.get("targets"))
        self._places, self._table = places, table
        self._forget_lessons()
        self._recent += lessons

    def _restored(self, records: Any, targets: Any) -> list[Lesson[bytes]]:
        if (
            not isinstance(targets, np.ndarray)
            or targets.shape[1:] != (self.horizon,)
            or not np.issubdtype(targets.dtype, np.integer)
            or len(targets) > RECENT_LESSONS
            or not ((targets >= -1) & (targets < len(self.labels))).all()
        ):
            raise ValueError("targets of lessons do not fit")
        every = split(records) if isinstance(records, np.ndarray) and records.dtype == np.uint16 and records.ndim == 1 else []
        if len(every) != len(targets):
            raise ValueError("records of lessons do not fit")
        return [Lesson(record, tuple(target)) for record, target in zip(every, targets.tolist(), strict=True)]

    def _learn(self, lessons: Sequence[Lesson[bytes]]) -> None:
        """Takes in new lessons, and with them some former ones."""
        for lesson in lessons:
            for column in lesson.targets:
                if column >= 0:
                    self._places.came(column)
        again: list[Lesson[bytes]] = []
        if self._recent:
            drawn = self._chance.integers(len(self._recent), size=REPLAYS * len(lessons))
            again = [self._recent[at] for at in drawn.tolist()]
        every = [*lessons, *again]
        came = np.array([[self._places.place(column) if column >= 0 else -1 for column in lesson.targets] for lesson in every])
        shares = np.ones(len(every), dtype=np.float32)
        shares[: len(lessons)] = _NEW
        self._table.learn(_joined([lesson.features for lesson in every]), came, shares, self._places.size)
        for lesson in lessons:
            self._remember(lesson)

    def _remember(self, lesson: Lesson[bytes]) -> None:
        if len(self._recent) < RECENT_LESSONS:
            self._recent.append(lesson)
        else:
            self._recent[self._oldest] = lesson
            self._oldest = (self._oldest + 1) % RECENT_LESSONS

    def _forget_lessons(self) -> None:
        self._recent.clear()
        self._oldest = 0
        self._chance = np.random.default_rng(_SEED)


def _joined(records: Sequence[bytes]) -> npt.NDArray[np.uint16]:
    return np.frombuffer(b"".join(records), dtype=np.uint16)
