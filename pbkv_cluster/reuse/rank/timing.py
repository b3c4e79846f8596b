"""How long workflows pause after an agent's steps, how long these steps run, and so how soon the next steps begin.

A pause in which the workflow waits for tools ends when they do (`tool_timing`); any other is like earlier pauses after the
same agent.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from pbkv_cluster.reuse.model.hazard import BIN_STARTS, Floats
from pbkv_cluster.reuse.rank.durations import Durations, DurationsByName
from pbkv_cluster.reuse.rank.tool_timing import ToolTiming, ToolWait

HORIZONS = np.array([0.5, 1, 2, 4, 8, 15, 25, 40, 60, 90, 140, 220, 360, 600])  # units of time, see `Timing`
LAST_HORIZON = float(HORIZONS[-1])

_TYPICAL_S = 28.0
_LATER = 0.8  # of a mean cycle: how much later each further step is taken to begin
_BIN_STOPS = np.append(BIN_STARTS[1:] - 1, 30)
_AFTER_NEXT = (BIN_STARTS + _BIN_STOPS) / 2 - 1.0  # steps from the next one to the middle of each bin


class Phase(NamedTuple):
    """Where a workflow is: in its latest step, or in the pause after it."""

    agent: str  # of that step
    running: bool  # the step runs; else the workflow pauses
    elapsed: float  # seconds that this has lasted
    tools: ToolWait | None = None  # what the workflow waits for in the pause, where it has said so


class Timing:
    """Pauses and durations of steps, by agent and of all agents.

    Horizons are in units that suit the workflows: a second where a step and the pause after it take some half a minute
    together, and a power of 4 more or less of it where they take much longer or shorter.
    """

    def __init__(self) -> None:
        self._pauses, self._runs = Durations([10.0]), Durations([5.0])
        self._pauses_after, self._runs_of = DurationsByName(), DurationsByName()
        self.tools = ToolTiming()
        self._set_cycle()

    def _set_cycle(self) -> None:
        # Attributes: both are read whenever a node is ranked.
        self.cycle = max(self._pauses.mean + self._runs.mean, 1e-6)  # mean seconds from one step of a workflow to the next
        self.unit = float(4.0 ** round(math.log(self.cycle / _TYPICAL_S, 4.0)))  # seconds

    def add_pause(self, agent: str, seconds: float) -> None:
        """A pause after an agent's step has ended."""
        self._pauses.add(seconds)
        self._pauses_after.add(agent, seconds)
        self._set_cycle()

    def add_run(self, agent: str, seconds: float) -> None:
        """A step of an agent has ended."""
        self._runs.add(seconds)
        self._runs_of.add(agent, seconds)
        self._set_cycle()

    def arrival(self, phases: Sequence[Phase]) -> Floats:
        """How soon the next steps of some workflows begin.

        Returns:
            Shape (workflows, bins, horizons): the probability that the step in the middle of a bin has begun by a horizon.
        """
        groups = dict[int, tuple[Durations, list[int]]]()  # workflows by the pauses to expect
        waits, elapsed = list[float](), list[float]()  # until the pause begins; of the pause so far
        announced = list[tuple[int, ToolWait, Durations]]()
        for number, (agent, running, seconds, tools) in enumerate(phases):
            pauses = self._pauses_after.get(agent, self._pauses)
            if tools is not None and not running:
                announced.append((number, tools, pauses))
            groups.setdefault(id(pauses), (pauses, []))[1].append(number)
            if running:
                mean = self._runs_of.get(agent, self._runs).mean
                waits.append(max(mean - seconds, 0.2 * mean))
                elapsed.append(0.0)
            else:
                waits.append(0.0)
                elapsed.append(seconds)
        later = np.array(waits)[:, None] + _LATER * self.cycle * _AFTER_NEXT
        seconds_left = HORIZONS * self.unit - later[:, :, None]  # of each horizon, once so many steps have been waited for
        paused = np.array(elapsed)[:, None, None]
        if len(groups) == 1:
            found = pauses.end_probability(seconds_left, paused)
        else:
            found = np.empty_like(seconds_left)
            for pauses, numbers in groups.values():
                found[numbers] = pauses.end_probability(seconds_left[numbers], paused[numbers])
        for number, tools, pauses in announced:
            found[number] = self.tools.end_probability(tools, seconds_left[number], pauses)
        return found
