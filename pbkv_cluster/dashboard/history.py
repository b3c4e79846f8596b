"""The rows of the last hours: every one of the last minutes, and one in a while of what lies further back."""

import numpy as np
from numpy.typing import NDArray

from pbkv_cluster.dashboard.columns import NAMES, Row

Rows = NDArray[np.float64]

_FINE_ROWS = 900
_FINE_S = 1.9  # between two rows, at least
_COARSE_S = 30.0
ROW_BYTES = len(NAMES) * 8
MIN_BYTES = 2 * _FINE_ROWS * ROW_BYTES


class _Ring:
    """The latest rows, in memory that is taken once."""

    def __init__(self, rows: int, interval_s: float) -> None:
        self._rows = np.zeros((rows, len(NAMES)))
        self._interval_s = interval_s
        self._count = 0

    def add(self, row: Row) -> bool:
        if self._count and row[0] - self._rows[(self._count - 1) % len(self._rows)][0] < self._interval_s:
            return False
        self._rows[self._count % len(self._rows)] = row
        self._count += 1
        return True

    def rows(self) -> Rows:
        """The oldest first."""
        if self._count <= len(self._rows):
            return self._rows[: self._count]
        return np.roll(self._rows, -(self._count % len(self._rows)), axis=0)


class History:
    """Rows by time, in a fixed number of bytes."""

    def __init__(self, most_bytes: int) -> None:
        """`most_bytes`: for all rows, at least `MIN_BYTES`."""
        self._fine = _Ring(_FINE_ROWS, _FINE_S)
        self._coarse = _Ring(most_bytes // ROW_BYTES - _FINE_ROWS, _COARSE_S)
        self._last: Row | None = None

    def add(self, row: Row) -> bool:
        """Takes a row that is later than all others. Returns whether it is one of those that are kept for hours."""
        self._last = row
        self._fine.add(row)
        return self._coarse.add(row)

    @property
    def last(self) -> Row | None:
        """The latest row."""
        return self._last

    def since(self, time: float, most: int) -> Rows:
        """The rows from `time` on, seconds since the epoch, and the one before them; the oldest first.

        Of more than `most` rows, so many are taken at equal distances, the latest among them.
        """
        fine, coarse = self._fine.rows(), self._coarse.rows()
        if len(fine) and fine[0, 0] > time:
            coarse = coarse[coarse[:, 0] < fine[0, 0]]
            fine = np.concatenate((coarse, fine))
        first = max(0, int(np.searchsorted(fine[:, 0], time)) - 1)
        found = fine[first:]
        if self._last is not None and (not len(found) or found[-1, 0] < self._last[0]):
            found = np.concatenate((found, self._last[np.newaxis]))
        if len(found) <= most:
            return found
        taken: Rows = found[np.unique(np.linspace(0, len(found) - 1, most).astype(int))]
        return taken
