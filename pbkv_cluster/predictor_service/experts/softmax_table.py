"""Multinomial logistic regression over hashed sparse features, learnt one example after the other.

P(place) = softmax(Σ value · weights[row]) for each of the K steps, by AdaGrad (Duchi, Hazan, Singer, JMLR 12, 2011): weight -=
rate · g / √(Σ g²), with g = value · (P(place) - 1{it came}).

An example is a record of uint16 numbers: of how many features each group has, and then the features, which are hashes, group
by group. Records of several examples lie one behind the other.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from pbkv_cluster.predictor_service.compiled import compiled
from pbkv_cluster.predictor_service.experts.arrays import counts_of
from pbkv_cluster.predictor_service.experts.base import Floats

RATE = 0.12
SLOWER = 0.85  # what comes later follows less from a situation: each step of the K moves by so much of the one before
START = 0.2  # of the sums of squares: a new feature's first step is a small one

_NOTHING = 1e-8
_MOST_ROWS = 1 << 15
_MOST_WEIGHTS = 3 << 19  # rows times steps times places: 6 MiB, and as much for the sums of squares
_UNIT = 4  # places come by so many: rows are added four numbers at a time

Ints = npt.NDArray[np.uint16]


class SoftmaxTable:
    """Rows come as their hashes do. When there are no more, new hashes share those there are."""

    def __init__(self, hashes: int, horizon: int, values: Floats) -> None:
        """Args:
        hashes: features are below it.
        horizon: K.
        values: of a feature, by the size of its group and by its group.
        """
        self.horizon = horizon
        self._rates: Floats = (RATE * SLOWER ** np.arange(horizon)).astype(np.float32)
        self._values = values
        self._rows: Ints = np.zeros(hashes, dtype=np.uint16)  # by hash; row 0 is of none, and its weights are 0
        self._used = 1
        self._weights: Floats = np.zeros((64, horizon, 2 * _UNIT), dtype=np.float32)
        self._squares: Floats = np.full_like(self._weights, START)

    def forecast(self, records: Ints, examples: int, places: int) -> Floats:
        """Probabilities [examples, K, places].

        Args:
            records: of the examples.
            examples: how many.
            places: outcomes that there are.
        """
        self._widen(places)
        found = np.empty((examples, self.horizon, places), dtype=np.float32)
        _forecast(records, self._values, self._rows, self._weights, found)
        return found

    def learn(self, records: Ints, came: npt.NDArray[np.int64], shares: Floats, places: int) -> None:
        """For each example one step of gradient descent on -Σ ln P(place).

        Args:
            records: of the examples.
            came: places [examples, K]; -1: not known.
            shares: how much each example counts.
            places: outcomes that there are.
        """
        self._widen(places)
        most = self._most_rows(self._weights.shape[2])
        needed = min(most, self._used + _unknown(records, len(came), self._values, self._rows))
        if needed > len(self._weights):
            self._resize(min(most, max(needed, 2 * len(self._weights))), self._weights.shape[2])
        self._used = _learn(
            records, came, shares, self._values, self._rates, self._rows, self._used, most, self._weights, self._squares, places
        )

    def keep(self, places: Sequence[int]) -> None:
        """What was place `places[i]` is place i from now on; -1: a new one."""
        self._widen(max(len(places), max(places) + 1))
        weights, squares = np.zeros_like(self._weights), np.full_like(self._squares, START)
        for place, source in enumerate(places):
            if source >= 0:
                weights[:, :, place], squares[:, :, place] = self._weights[:, :, source], self._squares[:, :, source]
        self._weights, self._squares = weights, squares

    def dump(self, places: int) -> dict[str, Any]:
        """The rows that have been learnt."""
        self._widen(places)
        hashes = np.flatnonzero(self._rows)
        return {
            "hashes": hashes,
            "rows": self._rows[hashes],
            "weights": self._weights[: self._used, :, :places],
            "squares": self._squares[: self._used, :, :places],
        }

    @classmethod
    def restore(cls, state: dict[str, Any], hashes: int, horizon: int, values: Floats, places: int) -> "SoftmaxTable":
        """Raises:
        ValueError: `state` is not what `dump` gives for so many places.
        """
        weights = state.get("weights")
        if not isinstance(weights, np.ndarray) or weights.ndim != 3 or not 1 <= len(weights) <= _MOST_ROWS:
            raise ValueError("weights do not fit")
        used = len(weights)
        squares = counts_of(state, "squares", used, horizon, places)
        if weights.shape != squares.shape or not np.issubdtype(weights.dtype, np.floating) or not np.isfinite(weights).all():
            raise ValueError("weights do not fit")
        if not (squares > 0).all() or weights[0].any():
            raise ValueError("squares do not fit")
        at, rows = _whole(state, "hashes", hashes), _whole(state, "rows", used)
        if at.shape != rows.shape or len(np.unique(at)) != len(at) or not rows.all():
            raise ValueError("rows do not fit")
        table = cls(hashes, horizon, values)
        table._rows[at] = rows
        table._used = used
        table._weights, table._squares = weights.astype(np.float32), squares
        table._resize(used, _whole_units(places))
        return table

    def _widen(self, places: int) -> None:
        if places <= self._weights.shape[2]:
            return
        width = _whole_units(places)
        most = self._most_rows(width)
        self._resize(min(most, len(self._weights)), width)
        beyond = self._rows >= most
        self._rows[beyond] = 1 + self._rows[beyond].astype(np.int64) % (most - 1)
        self._used = min(self._used, most)

    def _most_rows(self, width: int) -> int:
        return min(_MOST_ROWS, _MOST_WEIGHTS // (self.horizon * width))

    def _resize(self, rows: int, width: int) -> None:
        shape = (rows, self.horizon, width)
        weights, squares = np.zeros(shape, dtype=np.float32), np.full(shape, START, dtype=np.float32)
        same = tuple(slice(min(have, want)) for have, want in zip(self._weights.shape, shape, strict=True))
        weights[same], squares[same] = self._weights[same], self._squares[same]
        self._weights, self._squares = weights, squares


@compiled
def _scores(records: Ints, at: int, values: Floats, rows: Ints, weights: Floats, sums: Floats) -> Any:
    """Adds up what the features of one example say: `sums` is as long as a row. Returns where the next example begins."""
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


@compiled
def _softmax(sums: Floats, places: int) -> None:
    """Of the first places, in place; the others get 0."""
    largest = sums[:places].max()
    total = np.float32(0.0)
    for place in range(places):
        sums[place] = np.exp(sums[place] - largest)
        total += sums[place]
    sums[:places] /= total
    sums[places:] = 0.0


@compiled
def _forecast(records: Ints, values: Floats, rows: Ints, weights: Floats, found: Floats) -> None:
    examples, horizon, places = found.shape
    flat = weights.reshape(len(weights), -1)
    sums = np.empty(flat.shape[1], np.float32)
    by_step = sums.reshape(horizon, -1)
    at = 0
    for example in range(examples):
        at = _scores(records, at, values, rows, flat, sums)
        for step in range(horizon):
            _softmax(by_step[step], places)
            found[example, step] = by_step[step, :places]


@compiled
def _unknown(records: Ints, examples: int, values: Floats, rows: Ints) -> int:
    """Features that have no row yet, some of them counted more than once."""
    groups, at, found = values.shape[1], 0, 0
    for _ in range(examples):
        begin = at + groups
        for group in range(groups):
            begin += records[at + group]
        for feature in range(at + groups, begin):
            found += rows[records[feature]] == 0
        at = begin
    return found


@compiled
def _learn(
    records: Ints,
    came: npt.NDArray[np.int64],
    shares: Floats,
    values: Floats,
    rates: Floats,
    rows: Ints,
    used: int,
    most: int,
    weights: Floats,
    squares: Floats,
    places: int,
) -> int:
    """Returns how many rows are in use then."""
    examples, horizon = came.shape
    groups = values.shape[1]
    flat, flat_squares = weights.reshape(len(weights), -1), squares.reshape(len(squares), -1)
    slopes, moves = np.empty(flat.shape[1], np.float32), rates.repeat(weights.shape[2])
    by_step = slopes.reshape(horizon, -1)
    at = 0
    for example in range(examples):
        end = _scores(records, at, values, rows, flat, slopes)
        for step in range(horizon):
            if came[example, step] < 0:
                by_step[step] = 0.0
                continue
            _softmax(by_step[step], places)
            by_step[step, came[example, step]] -= 1.0
            for place in range(places):
                by_step[step, place] *= shares[example]
                if abs(by_step[step, place]) < _NOTHING:  # its square would be a number too small to be fast
                    by_step[step, place] = 0.0
        feature = at + groups
        for group in range(groups):
            size = records[at + group]
            value = values[size, group]
            for each in range(feature, feature + size):
                known = rows[records[each]]
                if known == 0:
                    if used < most:
                        known = used
                        used += 1
                    else:
                        known = 1 + records[each] % (most - 1)
                    rows[records[each]] = known
                row, row_squares = flat[known], flat_squares[known]
                for number in range(len(slopes)):
                    slope = value * slopes[number]
                    row_squares[number] += slope * slope
                    row[number] -= moves[number] * slope / np.sqrt(row_squares[number])
            feature += size
        at = end
    return used


def _whole_units(places: int) -> int:
    return -(-places // _UNIT) * _UNIT


def _whole(state: dict[str, Any], name: str, end: int) -> npt.NDArray[np.int64]:
    array = state.get(name)
    if (
        not isinstance(array, np.ndarray)
        or array.ndim != 1
        or not np.issubdtype(array.dtype, np.integer)
        or (len(array) and not 0 <= array.min() <= array.max() < end)
    ):
        raise ValueError(f"{name} do not fit")
    return array.astype(np.int64)
