"""Which columns a model with few outcomes tells apart: those that come most. The others share its last outcome."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from pbkv_cluster.predictor_service.experts.arrays import counts_of, grown
from pbkv_cluster.predictor_service.experts.base import Floats

MOST = 32  # outcomes

_REST = MOST - 1
_LEAD = 8.0  # times a column must have come more often than another to take its place, beside twice as often

_MEMORY = 16384.0  # counts; beyond, all are halved: what came lately matters more


class ColumnPlaces:
    """Columns have their own numbers for places, until there are too many."""

    def __init__(self) -> None:
        self._counts: Floats = np.zeros(8, dtype=np.float32)
        self._places: npt.NDArray[np.intp] = np.arange(0)  # by column

    @property
    def size(self) -> int:
        """Places in use."""
        return min(len(self._places), MOST)

    def grow(self, columns: int) -> None:
        """Adds columns, up to so many."""
        have = len(self._places)
        if columns > have:
            self._counts = grown(self._counts, columns)
            self._places = np.concatenate((self._places, np.minimum(np.arange(have, columns), _REST)))

    def came(self, column: int) -> int:
        """Counts a column, and gives its place."""
        self._counts[column] += 1.0
        return int(self._places[column])

    def place(self, column: int) -> int:
        return int(self._places[column])

    def spread(self, chances: Floats) -> Floats:
        """Chances of columns from those of places, on the last axis."""
        if len(self._places) <= MOST:
            return chances
        shares = np.ones(len(self._places), dtype=np.float32)
        rest = self._places == _REST
        counts = self._counts[: len(self._places)][rest] + 1.0
        shares[rest] = counts / counts.sum()
        found: Floats = chances.take(self._places, axis=-1) * shares
        return found

    def exchange(self) -> int | None:
        """If a column without a place of its own comes more often than one that has it, it takes it over: which that is."""
        rest = np.flatnonzero(self._places == _REST)
        if len(rest) < 2:
            return None
        if self._counts.sum() > _MEMORY:
            self._counts *= 0.5
        own = np.flatnonzero(self._places < _REST)[1:]  # the end keeps its own
        best, worst = rest[self._counts[rest].argmax()], own[self._counts[own].argmin()]
        if self._counts[best] <= 2.0 * self._counts[worst] + _LEAD:
            return None
        self._places[best], self._places[worst] = self._places[worst], _REST
        return int(self._places[best])

    def keep(self, columns: Sequence[int]) -> list[int]:
        """Renumbers columns; gives each place's former one, -1 where it starts anew."""
        self.grow(max(columns) + 1)
        before, self._counts = self._places[list(columns)], self._counts[list(columns)]
        if len(columns) <= MOST:
            self._places = np.arange(len(columns))
            return [-1 if place == _REST else int(place) for place in before]
        owners = [column for column, place in enumerate(before) if place < _REST]
        others = sorted((column for column, place in enumerate(before) if place == _REST), key=lambda at: -self._counts[at])
        chosen = [*owners, *others[: _REST - len(owners)]]
        self._places = np.full(len(columns), _REST)
        self._places[chosen] = np.arange(_REST)
        return [int(before[column]) for column in owners] + [-1] * (_REST - len(owners)) + [_REST]

    def dump(self, columns: int) -> dict[str, Any]:
        self.grow(columns)
        return {"counts": self._counts[:columns], "places": self._places}

    @classmethod
    def restore(cls, state: dict[str, Any], columns: int) -> "ColumnPlaces":
        """Raises:
        ValueError: `state` is not what `dump` gives for so many columns.
        """
        found = cls()
        found._counts = counts_of(state, "counts", columns)
        places = state.get("places")
        if not isinstance(places, np.ndarray) or places.shape != (columns,) or not np.issubdtype(places.dtype, np.integer):
            raise ValueError("places do not fit")
        own = np.sort(places[places != _REST]) if columns > MOST else np.sort(places)
        if not np.array_equal(own, np.arange(min(columns, _REST if columns > MOST else MOST))) or places[0] != 0:
            raise ValueError("places do not fit")
        found._places = places.astype(np.intp)
        return found
