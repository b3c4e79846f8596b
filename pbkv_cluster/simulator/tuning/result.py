"""What a search for settings found."""

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

from pbkv_cluster.simulator.evaluation.row import on_target
from pbkv_cluster.simulator.tuning.knobs import Values
from pbkv_cluster.simulator.tuning.objective import Objective

GAIN_MIN = 0.001  # of the objective over the present settings; less is noise


@dataclass(frozen=True, slots=True)
class Trial:
    """One candidate and its scores."""

    values: Values
    scores: tuple[float, ...]  # of the cells it ran in, in the order of `Tuning.cells`

    @property
    def score(self) -> float:
        """Mean over the cells that the candidate ran in."""
        return math.fsum(self.scores) / len(self.scores)


class CellName(NamedTuple):
    """One workload at one pressure."""

    workload: str
    pressure: float  # requested
    measured: float
    capacity_blocks: int

    @property
    def on_target(self) -> bool:
        """Whether the measured pressure is close to the requested one; if not, no capacity comes closer."""
        return on_target(self.pressure, self.measured)


@dataclass(frozen=True, slots=True)
class Tuning:
    """A search and the test of its winner."""

    objective: Objective
    cells: tuple[CellName, ...]  # of the tasks that were searched on
    trials: tuple[Trial, ...]  # the present settings first, then the other candidates, those that lasted longest first
    held_out_cells: tuple[CellName, ...]
    held_out_present: Trial
    held_out_winner: Trial | None  # None: the present settings won the search

    @property
    def accepted(self) -> bool:
        """Whether the winner beats the present settings on the held-out tasks too."""
        return self.held_out_winner is not None and self.held_out_winner.score >= self.held_out_present.score + GAIN_MIN

    @property
    def chosen(self) -> Values:
        """The settings to use."""
        return self.held_out_winner.values if self.held_out_winner is not None and self.accepted else self.trials[0].values

    def to_json(self) -> dict[str, Any]:
        def trial(of: Trial | None) -> dict[str, Any] | None:
            return None if of is None else {"values": dict(of.values), "score": of.score, "scores": list(of.scores)}

        return {
            "objective": self.objective.value,
            "accepted": self.accepted,
            "chosen": dict(self.chosen),
            "held_out": {
                "cells": [cell._asdict() for cell in self.held_out_cells],
                "present": trial(self.held_out_present),
                "winner": trial(self.held_out_winner),
            },
            "searched": {"cells": [cell._asdict() for cell in self.cells], "trials": [trial(each) for each in self.trials]},
        }
