"""A softmax regression over everything that is known: agents, counters, call sites, lengths, the prompt's pieces, words.

It learns with every step. With each new example some earlier ones are learnt again, so that few workflows teach much
(experience replay: Lin, Machine Learning 8, 1992).
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from pbkv_cluster.core.config import PredictorConfig
from pbkv_cluster.predictor_service.experts.base import Expert, Floats, TrainingExample
from pbkv_cluster.predictor_service.experts.labels import Labels
from pbkv_cluster.predictor_service.experts.linear.column_classes import ColumnClasses
from pbkv_cluster.predictor_service.experts.linear.features import HASHES, VALUES, record_of, split
from pbkv_cluster.predictor_service.experts.linear.softmax_table import SoftmaxTable
from pbkv_cluster.predictor_service.workflow.situation import Situation

REPLAYS = 3  # earlier examples learnt again with each new one
MAX_RECENT = 4096  # examples from which replays are drawn
MAX_SAVED = 512  # of these, the latest are saved: a fifth of a megabyte

_NEW_WEIGHT = 1.5  # of a new example; a replay has 1
_BATCH = 16  # new examples for one step of gradient descent
_SEED = 1


class LinearExpert(Expert[bytes]):
    """A softmax for each of the K steps. Situations before and after an output share no features."""

    def __init__(self, config: PredictorConfig, labels: Labels) -> None:
        super().__init__(config, labels)
        self._table = SoftmaxTable(HASHES, self.horizon, VALUES)
        self._classes = ColumnClasses()
        self._recent: list[TrainingExample[bytes]] = []  # a ring, once it is full
        self._oldest = 0
        self.reseed()

    @property
    def nbytes(self) -> int:
        """Memory of the weights, in bytes."""
        return self._table.nbytes

    def reseed(self) -> None:
        """Restarts the random draw of replays: after it, equal calls give equal forecasts."""
        self._draws = np.random.default_rng(_SEED)

    def features(self, situation: Situation) -> bytes:
        return record_of(situation)

    def forecast(self, features: Sequence[bytes]) -> Floats:
        self._classes.grow(len(self.labels))
        return self._classes.spread(self._table.forecast(_joined(features), len(features), self._classes.size))

    def learn(self, examples: Sequence[TrainingExample[bytes]]) -> None:
        self._classes.grow(len(self.labels))
        for start in range(0, len(examples), _BATCH):
            self._learn(examples[start : start + _BATCH])
        promoted = self._classes.promote()
        if promoted is not None:
            self._table.renumber([-1 if each == promoted else each for each in range(self._classes.size)])

    def renumber(self, columns: Sequence[int]) -> None:
        self._table.renumber(self._classes.renumber(columns))
        now = {before: column for column, before in enumerate(columns)}
        self._recent = [
            TrainingExample(each.features, tuple(now.get(column, -1) for column in each.targets)) for each in self._recent
        ]

    def dump(self) -> dict[str, Any]:
        latest = [*self._recent[self._oldest :], *self._recent[: self._oldest]][-MAX_SAVED:]
        return {
            "places": self._classes.dump(len(self.labels)),
            "table": self._table.dump(self._classes.size),
            "records": _joined([example.features for example in latest]),
            "targets": np.array([example.targets for example in latest], dtype=np.int32).reshape(-1, self.horizon),
        }

    def restore(self, state: dict[str, Any]) -> None:
        parts = [state.get(name) for name in ("places", "table")]
        if not all(isinstance(part, dict) for part in parts):
            raise ValueError("classes of columns or the table are missing")
        classes = ColumnClasses.restore(parts[0] or {}, len(self.labels))
        table = SoftmaxTable.restore(parts[1] or {}, HASHES, self.horizon, VALUES, classes.size)
        examples = self._restored(state.get("records"), state.get("targets"))
        self._classes, self._table = classes, table
        self._recent, self._oldest = examples, 0
        self.reseed()

    def _restored(self, records: Any, targets: Any) -> list[TrainingExample[bytes]]:
        if (
            not isinstance(targets, np.ndarray)
            or targets.shape[1:] != (self.horizon,)
            or not np.issubdtype(targets.dtype, np.integer)
            or len(targets) > MAX_RECENT
            or not ((targets >= -1) & (targets < len(self.labels))).all()
        ):
            raise ValueError("targets of examples do not fit")
        features = (
            split(records) if isinstance(records, np.ndarray) and records.dtype == np.uint16 and records.ndim == 1 else []
        )
        if len(features) != len(targets):
            raise ValueError("records of examples do not fit")
        return [TrainingExample(record, tuple(target)) for record, target in zip(features, targets.tolist(), strict=True)]

    def _learn(self, examples: Sequence[TrainingExample[bytes]]) -> None:
        """Learns a batch of new examples, together with some earlier ones."""
        for example in examples:
            for column in example.targets:
                if column >= 0:
                    self._classes.count(column)
        replays: list[TrainingExample[bytes]] = []
        if self._recent:
            drawn = self._draws.integers(len(self._recent), size=REPLAYS * len(examples))
            replays = [self._recent[at] for at in drawn.tolist()]
        batch = [*examples, *replays]
        classes = np.array(
            [[self._classes.class_of(column) if column >= 0 else -1 for column in example.targets] for example in batch]
        )
        weights = np.ones(len(batch), dtype=np.float32)
        weights[: len(examples)] = _NEW_WEIGHT
        self._table.learn(_joined([example.features for example in batch]), classes, weights, self._classes.size)
        for example in examples:
            self._remember(example)

    def _remember(self, example: TrainingExample[bytes]) -> None:
        if len(self._recent) < MAX_RECENT:
            self._recent.append(example)
        else:
            self._recent[self._oldest] = example
            self._oldest = (self._oldest + 1) % MAX_RECENT


def _joined(records: Sequence[bytes]) -> npt.NDArray[np.uint16]:
    return np.frombuffer(b"".join(records), dtype=np.uint16)
