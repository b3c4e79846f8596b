"""Multinomial logistic regression over hashed sparse features, learnt some examples at a time.

P(place) = softmax(Σ value · weights[row]) for each of the K steps, by AdaGrad (Duchi, Hazan, Singer, JMLR 12, 2011): weight -=
rate · g / √(Σ g²), with g = value · (P(place) - 1{it came}).
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from pbkv_cluster.predictor_service.experts.arrays import counts_of
from pbkv_cluster.predictor_service.experts.base import Floats

RATE = 0.12
START = 0.2  # of the sums of squares: a new feature's first step is a small one

_NOTHING = 1e-8
_MOST_ROWS = 1 << 14
_MOST_WEIGHTS = 3 << 19  # rows times steps times places: 6 MiB, and as much for the sums of squares

Ints = npt.NDArray[np.uint16]


class SoftmaxTable:
    """Rows come as their hashes do. When there are no more, new hashes share those there are."""

    def __init__(self, hashes: int, horizon: int) -> None:
        """Args:
        hashes: features are below it.
        horizon: K.
        """
        self.horizon = horizon
        self._rows: Ints = np.zeros(hashes, dtype=np.uint16)  # by hash; row 0 is of none, and its weights are 0
        self._used = 1
        self._weights: Floats = np.zeros((64, horizon, 8), dtype=np.float32)
        self._squares: Floats = np.full_like(self._weights, START)

    def forecast(self, hashes: npt.NDArray[np.uint16], values: Floats, counts: npt.NDArray[np.int64], places: int) -> Floats:
        """Probabilities [examples, K, places].

        Args:
            hashes: of all examples, one after the other.
            values: of the features.
            counts: features of each example.
            places: outcomes that there are.
        """
        self._widen(places)
        return self._chances(self._rows.take(hashes), values, counts, places)[:, :, :places]

    def learn(
        self,
        hashes: npt.NDArray[np.uint16],
        values: Floats,
        counts: npt.NDArray[np.int64],
        came: npt.NDArray[np.int64],
        places: int,
    ) -> None:
        """One step of gradient descent on -Σ ln P(place), all examples together.

        Args:
            hashes: of all examples, one after the other.
            values: of the features.
            counts: features of each example.
            came: places [examples, K]; -1: not known.
            places: outcomes that there are.
        """
        self._widen(places)
        rows = self._rows_of(hashes)
        slopes = self._chances(rows, values, counts, places)
        example, step = np.nonzero(came >= 0)
        slopes[example, step, came[example, step]] -= 1.0
        slopes[came < 0] = 0.0
        slopes[np.abs(slopes) < _NOTHING] = 0.0  # their squares would be numbers too small to be fast
        order = np.argsort(rows, kind="stable")  # of 16 bits, by radix: several times as fast
        starts = np.flatnonzero(np.diff(rows[order].astype(np.int32), prepend=-1))
        changed = rows[order[starts]]
        of_example, value = np.arange(len(counts)).repeat(counts)[order], values[order]
        flat = slopes.reshape(len(slopes), -1)
        gradient = _sums(flat, of_example, value, starts)
        squares, weights = (table.reshape(len(table), -1) for table in (self._squares, self._weights))
        grown_squares = squares.take(changed, axis=0)
        grown_squares += _sums(flat * flat, of_example, value * value, starts)
        squares[changed] = grown_squares
        gradient *= RATE
        gradient /= np.sqrt(grown_squares, out=grown_squares)
        weights[changed] = weights.take(changed, axis=0) - gradient

    def _chances(self, rows: Ints, values: Floats, counts: npt.NDArray[np.int64], places: int) -> Floats:
        """Probabilities [examples, K, width]."""
        sums = _sums(self._weights.reshape(len(self._weights), -1), rows, values, np.cumsum(counts) - counts)
        found = sums.reshape(len(counts), self.horizon, -1)
        found[:, :, places:] = -np.inf
        found -= found.max(axis=2, keepdims=True)
        np.exp(found, out=found)
        found /= found.sum(axis=2, keepdims=True)
        return found

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
    def restore(cls, state: dict[str, Any], hashes: int, horizon: int, places: int) -> "SoftmaxTable":
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
        table = cls(hashes, horizon)
        table._rows[at] = rows
        table._used = used
        table._weights, table._squares = weights.astype(np.float32), squares
        table._widen(max(places, 8))
        return table

    def _rows_of(self, hashes: npt.NDArray[np.uint16]) -> Ints:
        rows = self._rows.take(hashes)
        if not rows.all():
            self._add(np.unique(hashes[rows == 0]))
            rows = self._rows.take(hashes)
        return rows

    def _add(self, hashes: npt.NDArray[np.uint16]) -> None:
        most = self._most_rows(self._weights.shape[2])
        own, others = hashes[: most - self._used], hashes[most - self._used :]
        end = self._used + len(own)
        if end > len(self._weights):
            self._resize(min(most, max(end, 2 * len(self._weights))), self._weights.shape[2])
        self._rows[own] = np.arange(self._used, end)
        self._rows[others] = _shared(others, most)
        self._used = end

    def _widen(self, places: int) -> None:
        width = self._weights.shape[2]
        if places <= width:
            return
        width = max(places, 2 * width)
        most = self._most_rows(width)
        self._resize(min(most, len(self._weights)), width)
        beyond = self._rows >= most
        self._rows[beyond] = _shared(self._rows[beyond], most)
        self._used = min(self._used, most)

    def _most_rows(self, width: int) -> int:
        return min(_MOST_ROWS, _MOST_WEIGHTS // (self.horizon * width))

    def _resize(self, rows: int, width: int) -> None:
        shape = (rows, self.horizon, width)
        weights, squares = np.zeros(shape, dtype=np.float32), np.full(shape, START, dtype=np.float32)
        same = tuple(slice(min(have, want)) for have, want in zip(self._weights.shape, shape, strict=True))
        weights[same], squares[same] = self._weights[same], self._squares[same]
        self._weights, self._squares = weights, squares


def _sums(table: Floats, rows: npt.NDArray[Any], values: Floats, starts: npt.NDArray[np.int64]) -> Floats:
    """Sums of values times rows of a table, of those from each start to the next."""
    if len(starts) == 1:  # the cost of a call counts then
        one: Floats = values @ table.take(rows, axis=0)
        return one[None]
    found: Floats = torch.nn.functional.embedding_bag(
        torch.from_numpy(rows.astype(np.int64)),
        torch.from_numpy(table),
        torch.from_numpy(starts),
        mode="sum",
        per_sample_weights=torch.from_numpy(values),
    ).numpy()
    return found


def _shared(numbers: npt.NDArray[Any], most: int) -> npt.NDArray[Any]:
    """Rows for what has none of its own: any but the first."""
    return 1 + numbers.astype(np.int64) % (most - 1)


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
