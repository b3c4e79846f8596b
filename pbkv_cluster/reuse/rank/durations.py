"""Samples of durations, and how likely one of them is to end soon."""

from __future__ import annotations

import math
from bisect import bisect_left, insort
from collections import deque
from collections.abc import Iterable

import numpy as np

from pbkv_cluster.reuse.model.hazard import Floats

_KEPT = 200
_PRIOR = 2.0  # pseudo-observations of an exponential rest
_ENOUGH = 8  # durations of one name; with fewer, those of all names are used
_MOST_NAMES = 1024  # some applications invent agents for each task
_SHORTEST = 1e-3  # for logarithms


class Durations:
    """The latest durations of one kind, in seconds or in any other unit of time."""

    def __init__(self, first: Iterable[float] = ()) -> None:
        """Args:
        first: to begin with; forgotten like any others.
        """
        self._latest: deque[float] = deque()
        self._sorted: list[float] = []
        self._sum = 0.0
        self._array: Floats | None = None  # of `_sorted`, made when it is needed
        self._spread = -1.0  # below 0: to be computed
        for each in first:
            self.add(each)

    def __len__(self) -> int:
        return len(self._latest)

    @property
    def mean(self) -> float:
        return self._sum / len(self._latest)

    def add(self, seconds: float) -> None:
        """Adds a duration; the oldest is forgotten if there are too many."""
        self._latest.append(seconds)
        insort(self._sorted, seconds)
        self._sum += seconds
        if len(self._latest) > _KEPT:
            oldest = self._latest.popleft()
            del self._sorted[bisect_left(self._sorted, oldest)]
            self._sum -= oldest
        self._array, self._spread = None, -1.0

    @property
    def log_spread(self) -> float:
        """Standard deviation of the logarithms: how far a single number for all of them would be off."""
        if self._spread < 0.0:
            logs = [math.log(max(each, _SHORTEST)) for each in self._sorted]
            middle = math.fsum(logs) / len(logs)
            self._spread = math.sqrt(math.fsum((each - middle) ** 2 for each in logs) / len(logs))
        return self._spread

    def end_probability(self, seconds: Floats, elapsed: Floats | float) -> Floats:
        """Probability that what has lasted `elapsed` seconds ends within `seconds` more; 0 where these are negative."""
        if self._array is None:
            self._array = np.array(self._sorted)
        more = np.maximum(seconds, 0.0)
        ended = self._array.searchsorted(elapsed, side="right")
        rest = np.expm1(more / -np.maximum(elapsed, max(self.mean, 0.1)))  # below 0
        within = self._array.searchsorted(elapsed + more, side="right") - ended
        rest *= _PRIOR
        probability: Floats = (within - rest) / (len(self._sorted) - ended + _PRIOR)
        return probability


class DurationsByName:
    """Durations of each of many names, such as agents or tools. Those that were longest unseen are forgotten."""

    def __init__(self) -> None:
        self._each: dict[str, Durations] = {}

    def add(self, name: str, seconds: float) -> None:
        durations = self._each.pop(name, None) or Durations()
        durations.add(seconds)
        self._each[name] = durations
        if len(self._each) > _MOST_NAMES:
            del self._each[next(iter(self._each))]  # the one whose last duration is oldest

    def get(self, name: str, default: Durations) -> Durations:
        """Those of a name; the default where there are too few of them."""
        own = self._each.get(name)
        return default if own is None or len(own) < _ENOUGH else own
