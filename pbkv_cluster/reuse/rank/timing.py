"""When: how long workflows pause behind an agent's steps, how long these run, and so how soon the next steps come."""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right, insort
from collections import deque

import numpy as np

from pbkv_cluster.reuse.model.hazard import BIN_STARTS, Floats

HORIZONS = np.array([0.5, 1, 2, 4, 8, 15, 25, 40, 60, 90, 140, 220, 360, 600])  # units of time, see `Timing`
LAST_HORIZON = float(HORIZONS[-1])

_KEPT = 200
_ENOUGH = 8  # durations of one agent; with fewer it is taken to be like all
_MOST_AGENTS = 1024  # some applications invent agents for each task
_PRIOR = 2.0  # pseudo-observations of an exponential rest
_TYPICAL_S = 28.0
_LATER = 0.8  # of a mean cycle: how much later each further step is taken to come
_BETWEEN = np.append(BIN_STARTS[1:] - 1, 30)
_STEPS = (BIN_STARTS + _BETWEEN) / 2  # middle of each bin


class Durations:
    """The latest durations of one kind, in seconds."""

    def __init__(self) -> None:
        self._latest: deque[float] = deque()
        self._sorted: list[float] = []
        self._sum = 0.0
        self._array: Floats | None = None

    def __len__(self) -> int:
        return len(self._latest)

    @property
    def mean(self) -> float:
        return self._sum / len(self._latest)

    def add(self, seconds: float) -> None:
        self._latest.append(seconds)
        insort(self._sorted, seconds)
        self._sum += seconds
        if len(self._latest) > _KEPT:
            oldest = self._latest.popleft()
            del self._sorted[bisect_left(self._sorted, oldest)]
            self._sum -= oldest
        self._array = None

    def over_within(self, seconds: Floats, elapsed: float) -> Floats:
        """Probability that what has lasted `elapsed` seconds is over within each of `seconds` more."""
        if self._array is None:
            self._array = np.array(self._sorted)
        over = bisect_right(self._sorted, elapsed)
        more = np.maximum(seconds, 0.0)
        rest = np.expm1(more / -max(elapsed, self.mean, 0.1))  # less than 0
        within = self._array.searchsorted(elapsed + more, side="right") - over
        chances: Floats = (within - _PRIOR * rest) / (len(self._sorted) - over + _PRIOR)
        return chances


class Timing:
    """Pauses and durations of steps, by agent and of all.

    Horizons are in units that suit the workflows at hand: seconds where a step and the pause behind it take some half a minute
    together, and a power of 4 more or less of it where they take much longer or shorter.
    """

    def __init__(self) -> None:
        self._pauses, self._runs = Durations(), Durations()
        self._pauses.add(10.0)  # something to begin with
        self._runs.add(5.0)
        self._pauses_after: dict[str, Durations] = {}
        self._runs_of: dict[str, Durations] = {}
        self._set_cycle()

    def _set_cycle(self) -> None:
        # Attributes: both are asked for at each look at a node.
        self.cycle = max(self._pauses.mean + self._runs.mean, 1e-6)  # mean seconds from one step of a workflow to the next
        self.unit = float(4.0 ** round(math.log(self.cycle / _TYPICAL_S, 4.0)))  # seconds

    def paused(self, agent: str, seconds: float) -> None:
        """A pause behind an agent's step has ended."""
        self._pauses.add(seconds)
        _add(self._pauses_after, agent, seconds)
        self._set_cycle()

    def ran(self, agent: str, seconds: float) -> None:
        """A step of an agent has ended."""
        self._runs.add(seconds)
        _add(self._runs_of, agent, seconds)
        self._set_cycle()

    def arrival(self, agent: str, running: bool, elapsed: float) -> Floats:
        """How soon a workflow's coming steps begin.

        Args:
            agent: of its latest step.
            running: that step runs; else the workflow pauses behind it.
            elapsed: for so many seconds.

        Returns:
            Shape (bins, horizons): the probability that the step in the middle of each bin has begun by each horizon.
        """
        pauses = _of(self._pauses_after, agent, self._pauses)
        wait = 0.0
        if running:
            mean = _of(self._runs_of, agent, self._runs).mean
            wait, elapsed = max(mean - elapsed, 0.2 * mean), 0.0
        later = wait + _LATER * self.cycle * (_STEPS - 1.0)
        return pauses.over_within(HORIZONS * self.unit - later[:, None], elapsed)


def _add(each: dict[str, Durations], agent: str, seconds: float) -> None:
    durations = each.pop(agent, None) or Durations()
    durations.add(seconds)
    each[agent] = durations
    if len(each) > _MOST_AGENTS:
        del each[next(iter(each))]  # the one that was longest unseen


def _of(each: dict[str, Durations], agent: str, together: Durations) -> Durations:
    own = each.get(agent)
    return together if own is None or len(own) < _ENOUGH else own
