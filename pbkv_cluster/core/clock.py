"""Clocks. Every module is given one, so that the same code runs in real and in simulated time."""

import time
from typing import Protocol


class Clock(Protocol):
    """A source of time."""

    def now(self) -> float:
        """Seconds on a clock that never goes back. Only differences have a meaning."""
        ...

    def wall(self) -> float:
        """Seconds since the epoch; comparable between processes."""
        ...


class SystemClock:
    """The machine's clock."""

    def now(self) -> float:
        return time.monotonic()

    def wall(self) -> float:
        return time.time()


class ManualClock:
    """A clock that is moved by hand."""

    def __init__(self, start: float = 0.0) -> None:
        self._now = start

    def now(self) -> float:
        return self._now

    def wall(self) -> float:
        return self._now

    def advance(self, seconds: float) -> None:
        """Moves time on by `seconds`, which must not be negative."""
        if seconds < 0:
            raise ValueError(f"seconds must not be negative, got {seconds}")
        self._now += seconds

    def advance_to(self, time: float) -> None:
        """Moves time on to the reading `time`, which must not be past."""
        if time < self._now:
            raise ValueError(f"time must not be past {self._now}, got {time}")
        self._now = time
