"""How long workflows pause after an agent's steps, how long these steps run, and so how soon the next steps begin."""

from __future__ import annotations

import math
from bisect import bisect_left, insort
from collections import deque
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from pbkv_cluster.reuse.model.hazard import BIN_STARTS, Floats

HORIZONS = np.array([0.5, 1, 2, 4, 8, 15, 25, 40, 60, 90, 140, 220, 360, 600])  # units of time, see `Timing`
LAST_HORIZON = float(HORIZONS[-1])

_KEPT = 200
_ENOUGH = 8  # durations of one agent; with fewer, those of all agents are used
_MOST_AGENTS = 1024  # some applications invent agents for each task
_PRIOR = 2.0  # pseudo-observations of an exponential rest
_TYPICAL_S = 28.0
_LATER = 0.8  # of a mean cycle: how much later each further step is taken to begin
_BIN_STOPS = np.append(BIN_STARTS[1:] - 1, 30)
_AFTER_NEXT = (BIN_STARTS + _BIN_STOPS) / 2 - 1.0  # steps from the next one to the middle of each bin


class Durations:
    """The latest durations of one kind, in seconds."""

    def __init__(self) -> None:
        self._latest: deque[float] = deque()
        self._sorted: list[float] = []
        self._sum = 0.0
        self._array: Floats | None = None  # of `_sorted`, made when it is needed

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
        self._array = None

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


class Phase(NamedTuple):
    """Where a workflow is: in its latest step, or in the pause after it."""

    agent: str  # of that step
    running: bool  # the step runs; else the workflow pauses
    elapsed: float  # seconds that this has lasted


class Timing:
    """Pauses and durations of steps, by agent and of all agents.

    Horizons are in units that suit the workflows: a second where a step and the pause after it take some half a minute
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
        # Attributes: both are read whenever a node is ranked.
        self.cycle = max(self._pauses.mean + self._runs.mean, 1e-6)  # mean seconds from one step of a workflow to the next
        self.unit = float(4.0 ** round(math.log(self.cycle / _TYPICAL_S, 4.0)))  # seconds

    def add_pause(self, agent: str, seconds: float) -> None:
        """A pause after an agent's step has ended."""
        self._pauses.add(seconds)
        _add(self._pauses_after, agent, seconds)
        self._set_cycle()

    def add_run(self, agent: str, seconds: float) -> None:
        """A step of an agent has ended."""
        self._runs.add(seconds)
        _add(self._runs_of, agent, seconds)
        self._set_cycle()

    def arrival(self, phases: Sequence[Phase]) -> Floats:
        """How soon the next steps of some workflows begin.

        Returns:
            Shape (workflows, bins, horizons): the probability that the step in the middle of a bin has begun by a horizon.
        """
        groups = dict[int, tuple[Durations, list[int]]]()  # workflows by the pauses to expect
        waits, elapsed = list[float](), list[float]()  # until the pause begins; of the pause so far
        for number, (agent, running, seconds) in enumerate(phases):
            pauses = _of(self._pauses_after, agent, self._pauses)
            groups.setdefault(id(pauses), (pauses, []))[1].append(number)
            if running:
                mean = _of(self._runs_of, agent, self._runs).mean
                waits.append(max(mean - seconds, 0.2 * mean))
                elapsed.append(0.0)
            else:
                waits.append(0.0)
                elapsed.append(seconds)
        later = np.array(waits)[:, None] + _LATER * self.cycle * _AFTER_NEXT
        seconds_left = HORIZONS * self.unit - later[:, :, None]  # of each horizon, once so many steps have been waited for
        paused = np.array(elapsed)[:, None, None]
        if len(groups) == 1:
            return pauses.end_probability(seconds_left, paused)
        found: Floats = np.empty_like(seconds_left)
        for pauses, numbers in groups.values():
            found[numbers] = pauses.end_probability(seconds_left[numbers], paused[numbers])
        return found


def _add(each: dict[str, Durations], agent: str, seconds: float) -> None:
    durations = each.pop(agent, None) or Durations()
    durations.add(seconds)
    each[agent] = durations
    if len(each) > _MOST_AGENTS:
        del each[next(iter(each))]  # the one whose last duration is oldest


def _of(each: dict[str, Durations], agent: str, together: Durations) -> Durations:
    own = each.get(agent)
    return together if own is None or len(own) < _ENOUGH else own
