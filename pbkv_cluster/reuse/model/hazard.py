"""The access model: the hazard that a workflow uses a segment again 1, 2, 3, 4, 5-6, 7-10, 11-20 or 21 and more steps from now.

Each context (see `contexts`) has counted in each bin how often segments like this one had not been used before it, and how
often they then were. The contexts' opinions are combined by logistic mixing, with weights learnt online for each context, bin
and amount of evidence (Mahoney: Adaptive weighing of context models for lossless data compression, Florida Tech CS-2005-16;
Mattern: Mixing strategies in data compression, DCC 2012). A workflow that has ended never uses anything again.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from pbkv_cluster.reuse.model.contexts import CONTEXTS, OPEN, STEADY, Sums, context_rows, open_rows, steady_rows
from pbkv_cluster.reuse.model.features import Ints

Floats = npt.NDArray[np.float64]
Table = npt.NDArray[np.float32]

BIN_STARTS = np.array([1, 2, 3, 4, 5, 7, 11, 21])  # steps
BINS = len(BIN_STARTS)

_BITS = 18
_LEVELS = 8  # amounts of evidence: 0, 1, 2-3, 4-7, ..., 64 and more
_PRIOR = 0.1  # pseudo-observations of either outcome
_RATE = 0.003
_BATCH = 8.0  # weight of examples beyond which one step's gradient is scaled down to
_WEIGHT = 0.08  # of each opinion to begin with
_LIMIT = 1000.0  # observations; beyond, they are halved: what happened lately weighs more
_SURE = 12.0  # bound on the log-odds


_WEIGHTS = (np.arange(len(CONTEXTS))[:, None] * BINS + np.arange(BINS)) * _LEVELS  # where each context's and bin's begin
_WEIGHTS_STEADY, _WEIGHTS_OPEN = _WEIGHTS[STEADY], _WEIGHTS[OPEN]


class HazardModel:
    """Counts and mixing weights. Arrays may be read by others, and are written by `learn` and `put` alone."""

    def __init__(self) -> None:
        self.chances: Table = np.zeros((self.places(), BINS), dtype=np.float32)  # times not used before the bin
        self.uses: Table = np.zeros((self.places(), BINS), dtype=np.float32)  # of these, times used in it
        # What these say, kept because it is asked for far more often than it changes.
        self._opinions: Table = np.zeros_like(self.chances)  # log-odds
        self._evidence = np.zeros(self.chances.shape, dtype=np.int8)  # how much they rest on, in [0, _LEVELS)
        self.weights: Table = np.full(self.shape(), _WEIGHT, dtype=np.float32)

    @staticmethod
    def places() -> int:
        """Rows of the tables."""
        return 1 << _BITS

    @staticmethod
    def shape() -> tuple[int, int, int]:
        """Of the weights."""
        return len(CONTEXTS), BINS, _LEVELS

    def hazards(self, rows: Ints) -> Floats:
        """The hazard of each segment in each bin.

        Args:
            rows: facts, shape (segments, facts).

        Returns:
            Shape (segments, bins), each in (0, 1).
        """
        return hazards_of(self._log_odds(context_rows(rows, _BITS), _WEIGHTS))

    def steady_log_odds(self, sums: Sums) -> Table:
        """What contexts of settled facts alone add to the log-odds of each segment in each bin.

        Args:
            sums: `settled_sums` of the segments.

        Returns:
            Shape (segments, bins); see `hazards_of`.
        """
        return self._log_odds(steady_rows(sums, _BITS), _WEIGHTS_STEADY)

    def open_log_odds(self, sums: Sums, foretold: Ints) -> Table:
        """What the other contexts add.

        Args:
            sums: their columns of `settled_sums`.
            foretold: facts of the segments that depend on what is expected next.
        """
        return self._log_odds(open_rows(sums, foretold, _BITS), _WEIGHTS_OPEN)

    def put(self, places: npt.NDArray[np.int32], chances: Table, uses: Table, weights: Table) -> None:
        """Replaces some rows of the tables, and all weights."""
        self.chances[places] = chances
        self.uses[places] = uses
        self.weights[...] = weights
        self._derive(places)

    def learn(self, rows: Ints, when: Ints, distance: Ints, blocks: Ints) -> Ints:
        """Learns from one workflow that has ended: predicts what came, then corrects the weights and counts it.

        Args:
            rows: facts, shape (examples, facts).
            when: position of the step behind which each was known, ascending.
            distance: steps from there to the next use; 0: there was none.
            blocks: how many blocks each example stands for.

        Returns:
            The rows of the tables that have changed.
        """
        places = context_rows(rows, _BITS)
        opinions, evidence = self._opinions[places], self._evidence[places]
        outcome = np.where(distance > 0, np.searchsorted(BIN_STARTS, distance, side="right") - 1, BINS)[:, None]
        bins = np.arange(BINS)
        open_, used = bins <= outcome, bins == outcome
        importance = np.minimum(2.0, 0.25 + blocks / 8.0)[:, None]
        starts = [0, *(np.flatnonzero(np.diff(when)) + 1), len(when)]
        for start, stop in pairwise(starts):
            part = slice(start, stop)
            error = (used[part] - hazards_of(self._mix(opinions[part], evidence[part]))) * open_[part] * importance[part]
            gradient = error[:, None, :] * opinions[part]
            at = _WEIGHTS + evidence[part]
            total = np.bincount(at.ravel(), gradient.ravel(), self.weights.size).reshape(self.weights.shape)
            rate = _RATE / max(1.0, importance[part].sum() / _BATCH)
            self.weights += (rate * total).astype(np.float32)
        self._count(places, open_, used, np.minimum(1.0, importance))
        changed = np.unique(places)
        self._derive(changed)
        return changed

    def _count(self, places: Ints, open_: npt.NDArray[np.bool_], used: npt.NDArray[np.bool_], importance: Floats) -> None:
        shape = (*places.shape, BINS)
        for table, happened in ((self.chances, open_), (self.uses, open_ & used)):
            amount = np.broadcast_to((happened * importance)[:, None, :], shape).reshape(-1, BINS)
            np.add.at(table, places.ravel(), amount.astype(np.float32))
        full = np.unique(places[(self.chances[places, 0] > _LIMIT)])
        self.chances[full] *= 0.5
        self.uses[full] *= 0.5

    def _derive(self, places: npt.NDArray[np.integer[Any]]) -> None:
        chances, uses = self.chances[places], self.uses[places]
        self._opinions[places] = np.log((uses + _PRIOR) / (chances - uses + _PRIOR))
        self._evidence[places] = np.minimum(np.frexp(chances + 1.0)[1] - 1, _LEVELS - 1)

    def _log_odds(self, places: Ints, weights: Ints) -> Table:
        # Asked for at each step and forecast of a workflow: `take` has a third of the price of indexing.
        return self._mix(self._opinions.take(places, axis=0), self._evidence.take(places, axis=0), weights)

    def _mix(self, opinions: Table, evidence: npt.NDArray[np.int8], weights: Ints = _WEIGHTS) -> Table:
        """Log-odds of opinions of shape (segments, contexts, bins), given where their weights begin; shape (segments, bins)."""
        mixed: Table = np.add.reduce(self.weights.take(weights + evidence) * opinions, axis=1)
        return mixed


def hazards_of(log_odds: Table) -> Floats:
    """The hazards of log-odds that all contexts have added to."""
    hazards: Floats = 1.0 / (1.0 + np.exp(np.maximum(np.minimum(-log_odds, _SURE), -_SURE)))
    return hazards


def first_use(hazards: Floats) -> Floats:
    """The probability that the next use falls in each bin; what is missing to 1: there is none. Shape (segments, bins)."""
    unused = np.cumprod(1.0 - hazards, axis=1)
    found = hazards.copy()
    found[:, 1:] *= unused[:, :-1]
    return found
