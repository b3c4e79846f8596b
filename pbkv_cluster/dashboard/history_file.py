"""History in an SQLite file, so that a restart of the cluster keeps it."""

import json
import sqlite3
from pathlib import Path

import numpy as np

from pbkv_cluster.core.errors import StartupError
from pbkv_cluster.dashboard.columns import NAMES, Row

_SCHEMA = """
CREATE TABLE IF NOT EXISTS layout (names TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS rows (time REAL PRIMARY KEY, figures BLOB NOT NULL);
"""


class HistoryFile:
    """The rows that are kept for hours. Used by one thread."""

    def __init__(self, path: Path, most_rows: int) -> None:
        """Opens the file, and makes it if there is none.

        Args:
            path: of the file; its folder exists.
            most_rows: beyond, the oldest are dropped.

        Raises:
            StartupError: it cannot be opened, or is no such file.
        """
        self._path, self._most_rows = path, most_rows
        try:
            self._database = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
            self._database.execute("PRAGMA journal_mode=WAL")
            self._database.execute("PRAGMA synchronous=NORMAL")
            self._database.executescript(_SCHEMA)
            self._adopt_layout()
        except sqlite3.Error as error:
            raise StartupError(f"dashboard.history_path: {path} cannot be used: {error}") from error

    def rows(self) -> list[Row]:
        """The oldest first.

        Raises:
            StartupError: the file is damaged.
        """
        try:
            stored = self._database.execute("SELECT figures FROM rows ORDER BY time").fetchall()
        except sqlite3.Error as error:
            raise StartupError(f"dashboard.history_path: {self._path} cannot be read: {error}") from error
        return [np.frombuffer(figures, dtype="<f8").astype(np.float64) for (figures,) in stored]

    def add(self, row: Row) -> None:
        """Writes a row.

        Raises:
            OSError: it cannot be written.
        """
        try:
            self._database.execute("INSERT OR REPLACE INTO rows VALUES (?, ?)", (float(row[0]), row.astype("<f8").tobytes()))
            self._database.execute(
                "DELETE FROM rows WHERE time <= (SELECT time FROM rows ORDER BY time DESC LIMIT 1 OFFSET ?)", (self._most_rows,)
            )
        except sqlite3.Error as error:
            raise OSError(f"{self._path}: {error}") from error

    def close(self) -> None:
        """Closes the file. May be called again."""
        self._database.close()

    def _adopt_layout(self) -> None:
        """Rows with other figures than ours, written by another version, cannot be continued: they are dropped."""
        ours = json.dumps(NAMES)
        if self._database.execute("SELECT names FROM layout").fetchone() != (ours,):
            self._database.executescript("DELETE FROM layout; DELETE FROM rows;")
            self._database.execute("INSERT INTO layout VALUES (?)", (ours,))
