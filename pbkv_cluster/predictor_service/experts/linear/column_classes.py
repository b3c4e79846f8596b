"""Which columns have their own class in a classifier with few classes: the most frequent ones. The others share the last."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from pbkv_cluster.predictor_service.experts.arrays import counts_of, grown
from pbkv_cluster.predictor_service.experts.base import Floats

MAX_CLASSES = 32

_SHARED = MAX_CLASSES - 1
_LEAD = 8.0  # a column takes over the class of another if its count is more than twice the other's and this much more
_MAX_COUNT = 16384.0  # of all columns together; beyond, counts are halved, so that recent outcomes weigh more


class ColumnClasses:
    """Maps columns to classes. A column's class is its own number until there are too many."""

    def __init__(self) -> None:
        self._counts: Floats = np.zeros(8, dtype=np.float32)
        self._classes: npt.NDArray[np.intp] = np.arange(0)  # by column

    @property
    def size(self) -> int:
        """Classes in use."""
        return min(len(self._classes), MAX_CLASSES)

    def grow(self, columns: int) -> None:
        """Adds columns until there are so many."""
        have = len(self._classes)
        if columns > have:
            self._counts = grown(self._counts, columns)
            self._classes = np.concatenate((self._classes, np.minimum(np.arange(have, columns), _SHARED)))

    def count(self, column: int) -> int:
        """Counts an outcome. Returns its class."""
        self._counts[column] += 1.0
        return int(self._classes[column])

    def class_of(self, column: int) -> int:
        """The class of a column."""
        return int(self._classes[column])

    def spread(self, probabilities: Floats) -> Floats:
        """Probabilities of columns from those of classes, on the last axis: columns of the shared class by their counts."""
        if len(self._classes) <= MAX_CLASSES:
            return probabilities
        shares = np.ones(len(self._classes), dtype=np.float32)
        shared = self._classes == _SHARED
        counts = self._counts[: len(self._classes)][shared] + 1.0
        shares[shared] = counts / counts.sum()
        found: Floats = probabilities.take(self._classes, axis=-1) * shares
        return found

    def promote(self) -> int | None:
        """Gives a column of the shared class the class of a column that is less frequent now. Returns that class, if any."""
        shared = np.flatnonzero(self._classes == _SHARED)
        if len(shared) < 2:
            return None
        if self._counts.sum() > _MAX_COUNT:
            self._counts *= 0.5
        own = np.flatnonzero(self._classes < _SHARED)[1:]  # the end keeps its class
        best, worst = shared[self._counts[shared].argmax()], own[self._counts[own].argmin()]
        if self._counts[best] <= 2.0 * self._counts[worst] + _LEAD:
            return None
        self._classes[best], self._classes[worst] = self._classes[worst], _SHARED
        return int(self._classes[best])

    def renumber(self, columns: Sequence[int]) -> list[int]:
        """What was column `columns[i]` is column i from now on. Returns the former class of each class, -1 for a new one."""
        self.grow(max(columns) + 1)
        before, self._counts = self._classes[list(columns)], self._counts[list(columns)]
        if len(columns) <= MAX_CLASSES:
            self._classes = np.arange(len(columns))
            return [-1 if former == _SHARED else int(former) for former in before]
        owners = [column for column, former in enumerate(before) if former < _SHARED]
        others = sorted((column for column, former in enumerate(before) if former == _SHARED), key=lambda at: -self._counts[at])
        chosen = [*owners, *others[: _SHARED - len(owners)]]
        self._classes = np.full(len(columns), _SHARED)
        self._classes[chosen] = np.arange(_SHARED)
        return [int(before[column]) for column in owners] + [-1] * (_SHARED - len(owners)) + [_SHARED]

    def dump(self, columns: int) -> dict[str, Any]:
        """Counts and classes of so many columns."""
        self.grow(columns)
        return {"counts": self._counts[:columns], "places": self._classes}

    @classmethod
    def restore(cls, state: dict[str, Any], columns: int) -> "ColumnClasses":
        """Raises:
        ValueError: `state` is not what `dump` gives for so many columns.
        """
        found = cls()
        found._counts = counts_of(state, "counts", columns)
        classes = state.get("places")
        if not isinstance(classes, np.ndarray) or classes.shape != (columns,) or not np.issubdtype(classes.dtype, np.integer):
            raise ValueError("classes of columns do not fit")
        many = columns > MAX_CLASSES
        own = np.sort(classes[classes != _SHARED]) if many else np.sort(classes)
        if not np.array_equal(own, np.arange(min(columns, _SHARED if many else MAX_CLASSES))) or classes[0] != 0:
            raise ValueError("classes of columns do not fit")
        found._classes = classes.astype(np.intp)
        return found
