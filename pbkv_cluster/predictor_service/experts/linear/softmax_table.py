"""Multinomial logistic regression over hashed sparse features, learnt one example after the other.

P(class) = softmax(Σ value · weights[row]) for each of the K steps, by AdaGrad (Duchi, Hazan, Singer, JMLR 12, 2011): weight -=
rate · g / √(Σ g²), with g = value · (P(class) - 1{class is the target}).

An example is a record of uint16 numbers: first the number of features in each group, then the features, which are hashes, group
by group. The records of several examples follow one another.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from pbkv_cluster.predictor_service.experts.arrays import counts_of
from pbkv_cluster.predictor_service.experts.base import Floats
from pbkv_cluster.predictor_service.jit import jit

RATE = 0.12
STEP_DECAY = 0.85  # of the rate from each step ahead to the next: later outcomes depend less on the situation
INITIAL_SQUARES = 0.2  # so that the first update of a new feature is small

_NEGLIGIBLE = 1e-8
_MAX_ROWS = 1 << 15
_MAX_WEIGHTS = 3 << 19  # rows x steps x classes: 6 MiB, and as much for the sums of squares
_UNIT = 4  # the width in classes is a multiple of it: vector instructions add four numbers at a time

Ints = npt.NDArray[np.uint16]


class SoftmaxTable:
    """Weights in rows, one for each hash seen. When no more rows are allowed, new hashes share the existing ones."""

    def __init__(self, hashes: int, horizon: int, values: Floats) -> None:
        """Args:
        hashes: number of different features.
        horizon: K.
        values: of a feature, by the size of its group and by its group.
        """
        self.horizon = horizon
        self._rates: Floats = (RATE * STEP_DECAY ** np.arange(horizon)).astype(np.float32)
        self._values = values
        self._rows: Ints = np.zeros(hashes, dtype=np.uint16)  # by hash; row 0 stands for no row, and its weights are 0
        self._used = 1
        self._weights: Floats = np.zeros((64, horizon, 2 * _UNIT), dtype=np.float32)
        self._squares: Floats = np.full_like(self._weights, INITIAL_SQUARES)

    @property
    def nbytes(self) -> int:
        """Memory of the table, in bytes."""
        return self._weights.nbytes + self._squares.nbytes + self._rows.nbytes

    def forecast(self, records: Ints, examples: int, classes: int) -> Floats:
        """Probabilities [examples, K, classes].

        Args:
            records: of the examples.
            examples: their number.
            classes: number of classes.
        """
        self._widen(classes)
        found = np.empty((examples, self.horizon, classes), dtype=np.float32)
        _forecast(records, self._values, self._rows, self._weights, found)
        return found

    def learn(self, records: Ints, targets: npt.NDArray[np.int64], example_weights: Floats, classes: int) -> None:
        """Makes one step of gradient descent on -Σ ln P(target) for each example.

        Args:
            records: of the examples.
            targets: classes [examples, K]; -1: unknown.
            example_weights: of each example.
            classes: number of classes.
        """
        self._widen(classes)
        max_rows = self._max_rows(self._weights.shape[2])
        needed = min(max_rows, self._used + _count_new(records, len(targets), self._values, self._rows))
        if needed > len(self._weights):
            self._resize(min(max_rows, max(needed, 2 * len(self._weights))), self._weights.shape[2])
        self._used = _learn(
            records,
            targets,
            example_weights,
            self._values,
            self._rates,
            self._rows,
            self._used,
            max_rows,
            self._weights,
            self._squares,
            classes,
        )

    def renumber(self, classes: Sequence[int]) -> None:
        """What was class `classes[i]` is class i from now on; -1: a new one."""
        self._widen(max(len(classes), max(classes) + 1))
        weights, squares = np.zeros_like(self._weights), np.full_like(self._squares, INITIAL_SQUARES)
        for to, source in enumerate(classes):
            if source >= 0:
                weights[:, :, to], squares[:, :, to] = self._weights[:, :, source], self._squares[:, :, source]
        self._weights, self._squares = weights, squares

    def dump(self, classes: int) -> dict[str, Any]:
        """The rows in use, so many classes wide."""
        self._widen(classes)
        hashes = np.flatnonzero(self._rows)
        return {
            "hashes": hashes,
            "rows": self._rows[hashes],
            "weights": self._weights[: self._used, :, :classes],
            "squares": self._squares[: self._used, :, :classes],
        }

    @classmethod
    def restore(cls, state: dict[str, Any], hashes: int, horizon: int, values: Floats, classes: int) -> "SoftmaxTable":
        """Raises:
        ValueError: `state` is not what `dump` gives for so many classes.
        """
        weights = state.get("weights")
        if not isinstance(weights, np.ndarray) or weights.ndim != 3 or not 1 <= len(weights) <= _MAX_ROWS:
            raise ValueError("weights do not fit")
        used = len(weights)
        squares = counts_of(state, "squares", used, horizon, classes)
        if weights.shape != squares.shape or not np.issubdtype(weights.dtype, np.floating) or not np.isfinite(weights).all():
            raise ValueError("weights do not fit")
        if not (squares > 0).all() or weights[0].any():
            raise ValueError("squares do not fit")
        at, rows = _indices(state, "hashes", hashes), _indices(state, "rows", used)
        if at.shape != rows.shape or len(np.unique(at)) != len(at) or not rows.all():
            raise ValueError("rows do not fit")
        table = cls(hashes, horizon, values)
        table._rows[at] = rows
        table._used = used
        table._weights, table._squares = weights.astype(np.float32), squares
        table._resize(used, _whole_units(classes))
        return table

    def _widen(self, classes: int) -> None:
        if classes <= self._weights.shape[2]:
            return
        width = _whole_units(classes)
        max_rows = self._max_rows(width)
        self._resize(min(max_rows, len(self._weights)), width)
        beyond = self._rows >= max_rows
        self._rows[beyond] = 1 + self._rows[beyond].astype(np.int64) % (max_rows - 1)
        self._used = min(self._used, max_rows)

    def _max_rows(self, width: int) -> int:
        return min(_MAX_ROWS, _MAX_WEIGHTS // (self.horizon * width))

    def _resize(self, rows: int, width: int) -> None:
        shape = (rows, self.horizon, width)
        weights, squares = np.zeros(shape, dtype=np.float32), np.full(shape, INITIAL_SQUARES, dtype=np.float32)
        same = tuple(slice(min(have, want)) for have, want in zip(self._weights.shape, shape, strict=True))
        weights[same], squares[same] = self._weights[same], self._squares[same]
        self._weights, self._squares = weights, squares


@jit
def _scores(records: Ints, at: int, values: Floats, rows: Ints, weights: Floats, sums: Floats) -> Any:
    """Writes the weighted sum of an example's rows to `sums`, as long as a row. Returns where the next example starts."""
    sums[:] = 0.0
    groups = values.shape[1]
    feature = at + groups
    for group in range(groups):
        size = records[at + group]
        value = values[size, group]
        for each in range(feature, feature + size):
            row = weights[rows[records[each]]]
            for number in range(len(sums)):
                sums[number] += value * row[number]
        feature += size
    return feature


@jit
def _softmax(sums: Floats, classes: int) -> None:
    """Replaces the scores of the classes by probabilities; what follows them becomes 0."""
    largest = sums[:classes].max()
    total = np.float32(0.0)
    for each in range(classes):
        sums[each] = np.exp(sums[each] - largest)
        total += sums[each]
    sums[:classes] /= total
    sums[classes:] = 0.0


@jit
def _forecast(records: Ints, values: Floats, rows: Ints, weights: Floats, found: Floats) -> None:
    examples, horizon, classes = found.shape
    flat = weights.reshape(len(weights), -1)
    sums = np.empty(flat.shape[1], np.float32)
    by_step = sums.reshape(horizon, -1)
    at = 0
    for example in range(examples):
        at = _scores(records, at, values, rows, flat, sums)
        for step in range(horizon):
            _softmax(by_step[step], classes)
            found[example, step] = by_step[step, :classes]


@jit
def _count_new(records: Ints, examples: int, values: Floats, rows: Ints) -> int:
    """Number of features that have no row yet; one that occurs again is counted again."""
    groups, at, found = values.shape[1], 0, 0
    for _ in range(examples):
        begin = at + groups
        for group in range(groups):
            begin += records[at + group]
        for feature in range(at + groups, begin):
            found += rows[records[feature]] == 0
        at = begin
    return found


@jit
def _learn(
    records: Ints,
    targets: npt.NDArray[np.int64],
    example_weights: Floats,
    values: Floats,
    rates: Floats,
    rows: Ints,
    used: int,
    max_rows: int,
    weights: Floats,
    squares: Floats,
    classes: int,
) -> int:
    """Returns the number of rows in use afterwards."""
    examples, horizon = targets.shape
    groups = values.shape[1]
    flat, flat_squares = weights.reshape(len(weights), -1), squares.reshape(len(squares), -1)
    slopes, step_rates = np.empty(flat.shape[1], np.float32), rates.repeat(weights.shape[2])
    by_step = slopes.reshape(horizon, -1)
    at = 0
    for example in range(examples):
        end = _scores(records, at, values, rows, flat, slopes)
        for step in range(horizon):
            if targets[example, step] < 0:
                by_step[step] = 0.0
                continue
            _softmax(by_step[step], classes)
            by_step[step, targets[example, step]] -= 1.0
            for each in range(classes):
                by_step[step, each] *= example_weights[example]
                if abs(by_step[step, each]) < _NEGLIGIBLE:  # its square would be denormal, which is slow
                    by_step[step, each] = 0.0
        feature = at + groups
        for group in range(groups):
            size = records[at + group]
            value = values[size, group]
            for each in range(feature, feature + size):
                known = rows[records[each]]
                if known == 0:
                    if used < max_rows:
                        known = used
                        used += 1
                    else:
                        known = 1 + records[each] % (max_rows - 1)
                    rows[records[each]] = known
                row, row_squares = flat[known], flat_squares[known]
                for number in range(len(slopes)):
                    slope = value * slopes[number]
                    row_squares[number] += slope * slope
                    row[number] -= step_rates[number] * slope / np.sqrt(row_squares[number])
            feature += size
        at = end
    return used


def _whole_units(classes: int) -> int:
    return -(-classes // _UNIT) * _UNIT


def _indices(state: dict[str, Any], name: str, end: int) -> npt.NDArray[np.int64]:
    array = state.get(name)
    if (
        not isinstance(array, np.ndarray)
        or array.ndim != 1
        or not np.issubdtype(array.dtype, np.integer)
        or (len(array) and not 0 <= array.min() <= array.max() < end)
    ):
        raise ValueError(f"{name} do not fit")
    return array.astype(np.int64)
