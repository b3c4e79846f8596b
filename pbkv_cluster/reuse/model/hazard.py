"""The hazard model: whether a workflow uses a segment again 1, 2, 3, 4, 5-6, 7-10, 11-20 or 21 and more steps from now.

The hazard of a bin is the probability of a use in it, if there was none before. For each context (see `contexts`) and bin the
model counts how often segments were at risk (not used before the bin) and how often they were then used. The contexts' log-odds
are combined by logistic mixing, with weights learnt online for each context, bin and amount of evidence (Mahoney: Adaptive
weighing of context models for lossless data compression, Florida Tech CS-2005-16; Mattern: Mixing strategies in data
compression, DCC 2012). A workflow that has ended never uses anything again.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from pbkv_cluster.reuse.model.contexts import (
    CONTEXT_ORDER,
    CONTEXTS,
    EVENT_CONTEXTS,
    FIRST_EVENT_CONTEXT,
    Sums,
    context_rows,
    table_rows,
)
from pbkv_cluster.reuse.model.features import Ints

Floats = npt.NDArray[np.float64]
Table = npt.NDArray[np.float32]

BIN_STARTS = np.array([1, 2, 3, 4, 5, 7, 11, 21])  # steps
BINS = len(BIN_STARTS)

BITS = 17
_LEVELS = 8  # amounts of evidence: 0, 1, 2-3, 4-7, ..., 64 and more observations
_PRIOR = 0.1  # pseudo-observations of either outcome
_RATE = 0.003
_BATCH = 8.0  # weight of examples beyond which one step's gradient is scaled down to
_WEIGHT = 0.08  # of each context at the start
_LIMIT = 1000.0  # observations; beyond, they are halved, so that recent ones weigh more
# Arrays without axes are the quickest operands of numpy.
_ONE, _LOG_ODDS_MAX, _LOG_ODDS_MIN = (np.array(value, dtype=np.float32) for value in (1.0, 12.0, -12.0))


# Where the weights of each context and bin begin.
_WEIGHTS = ((np.arange(len(CONTEXTS))[:, None] * BINS + np.arange(BINS)) * _LEVELS).astype(np.int32)
_WEIGHTS_ORDERED, _WEIGHTS_EVENT = _WEIGHTS[CONTEXT_ORDER], _WEIGHTS[EVENT_CONTEXTS]


class HazardModel:
    """Counts and mixing weights. Others may read the arrays; only `learn` and `put` write them."""

    def __init__(self) -> None:
        self.at_risk: Table = np.zeros((self.rows(), BINS), dtype=np.float32)  # times not used before the bin
        self.uses: Table = np.zeros((self.rows(), BINS), dtype=np.float32)  # of these, times used in it
        # Derived from the counts, and kept because they are read far more often than the counts change: log-odds and amounts
        # of evidence, in [0, _LEVELS). They lie side by side, so that reading a row costs one cache line.
        derived = np.zeros((self.rows(), 2 * BINS), dtype=np.float32)
        self._derived, self._log_odds, self._evidence = derived, derived[:, :BINS], derived.view(np.int32)[:, BINS:]
        self.weights: Table = np.full(self.shape(), _WEIGHT, dtype=np.float32)

    @staticmethod
    def rows() -> int:
        """Rows of the tables."""
        return 1 << BITS

    @staticmethod
    def shape() -> tuple[int, int, int]:
        """Shape of the weights."""
        return len(CONTEXTS), BINS, _LEVELS

    def hazards(self, facts: Ints) -> Floats:
        """The hazard of each segment in each bin.

        Args:
            facts: shape (segments, facts).

        Returns:
            Shape (segments, bins), each in (0, 1).
        """
        rows = context_rows(facts, BITS)
        return hazards_of(_sum_contexts(self._weighted(rows, _WEIGHTS)))

    def log_odds(self, sums: Sums) -> tuple[Table, Table]:
        """What contexts of the record alone, and all others, add to the log-odds of each segment in each bin.

        Args:
            sums: over all facts, shape (segments, contexts), contexts in `CONTEXT_ORDER`.

        Returns:
            Two tables of shape (segments, bins); see `hazards_of`.
        """
        weighted = self._weighted(table_rows(sums, BITS), _WEIGHTS_ORDERED)
        return _sum_contexts(weighted[:, :FIRST_EVENT_CONTEXT]), _sum_contexts(weighted[:, FIRST_EVENT_CONTEXT:])

    def event_log_odds(self, sums: Sums) -> Table:
        """The second table of `log_odds` alone.

        Args:
            sums: over all facts, shape (segments, event contexts).
        """
        return _sum_contexts(self._weighted(table_rows(sums, BITS), _WEIGHTS_EVENT))

    def put(self, rows: npt.NDArray[np.int32], at_risk: Table, uses: Table, weights: Table) -> None:
        """Replaces some rows of the tables, and all weights."""
        self.at_risk[rows] = at_risk
        self.uses[rows] = uses
        self.weights[...] = weights
        self._derive(rows)

    def learn(self, facts: Ints, when: Ints, distance: Ints, blocks: Ints) -> Ints:
        """Learns from one workflow that has ended: predicts each outcome, then corrects the weights and counts it.

        Args:
            facts: shape (examples, facts).
            when: position of the step after which each example was known, ascending.
            distance: steps from there to the next use; 0: there was none.
            blocks: how many blocks each example stands for.

        Returns:
            The rows of the tables that have changed, ascending.
        """
        rows = context_rows(facts, BITS)
        log_odds, evidence = self._log_odds[rows], self._evidence[rows]
        outcome = np.where(distance > 0, np.searchsorted(BIN_STARTS, distance, side="right") - 1, BINS)[:, None]
        bins = np.arange(BINS)
        at_risk, used = bins <= outcome, bins == outcome
        importance = np.minimum(2.0, 0.25 + blocks / 8.0)[:, None]
        starts = [0, *(np.flatnonzero(np.diff(when)) + 1), len(when)]
        for start, stop in pairwise(starts):
            part = slice(start, stop)
            at = _WEIGHTS + evidence[part]
            hazards = hazards_of(_sum_contexts(self.weights.take(at) * log_odds[part]))
            error = (used[part] - hazards) * at_risk[part] * importance[part]
            gradient = error[:, None, :] * log_odds[part]
            total = np.bincount(at.ravel(), gradient.ravel(), self.weights.size).reshape(self.weights.shape)
            rate = _RATE / max(1.0, importance[part].sum() / _BATCH)
            self.weights += (rate * total).astype(np.float32)
        self._count(rows, at_risk, used, np.minimum(1.0, importance))
        touched = np.zeros(self.rows(), dtype=np.bool_)  # marking all rows costs less than sorting those of the examples
        touched[rows] = True
        changed = np.flatnonzero(touched)
        self._derive(changed)
        return changed

    def _count(self, rows: Ints, at_risk: npt.NDArray[np.bool_], used: npt.NDArray[np.bool_], importance: Floats) -> None:
        for table, happened in ((self.at_risk, at_risk), (self.uses, at_risk & used)):
            # One number for each element that grows: numpy adds single numbers several times faster than rows.
            examples, bins = np.nonzero(happened)
            places = rows[examples] * BINS + bins[:, None]
            amount = np.broadcast_to(importance[examples].astype(np.float32), places.shape)
            np.add.at(table.reshape(-1), places.ravel(), amount.ravel())
        full = np.unique(rows[(self.at_risk[rows, 0] > _LIMIT)])
        self.at_risk[full] *= 0.5
        self.uses[full] *= 0.5

    def _derive(self, rows: npt.NDArray[np.integer[Any]]) -> None:
        at_risk, uses = self.at_risk[rows], self.uses[rows]
        self._log_odds[rows] = np.log((uses + _PRIOR) / (at_risk - uses + _PRIOR))
        self._evidence[rows] = np.minimum(np.frexp(at_risk + 1.0)[1] - 1, _LEVELS - 1)

    def _weighted(self, rows: Ints, weights: npt.NDArray[np.int32]) -> Table:
        """Log-odds times weight of each segment, context and bin, given where the contexts' weights begin."""
        # Every step and forecast of a workflow comes here: `take` has a third of the cost of indexing.
        derived = self._derived.take(rows, 0)
        found: Table = self.weights.take(derived.view(np.int32)[:, :, BINS:] + weights)
        found *= derived[:, :, :BINS]
        return found


def hazards_of(log_odds: Table) -> Floats:
    """The hazards for log-odds summed over all contexts."""
    odds = -log_odds
    np.minimum(odds, _LOG_ODDS_MAX, out=odds)
    np.maximum(odds, _LOG_ODDS_MIN, out=odds)
    np.exp(odds, out=odds)
    odds += _ONE
    return np.divide(_ONE, odds, out=odds)


def first_use(hazards: Floats) -> Floats:
    """The probability that the next use falls in each bin; the rest to 1: there is none. Shape (segments, bins)."""
    unused = np.multiply.accumulate(1.0 - hazards, axis=1)
    found = hazards.astype(np.float64)
    later = found[:, 1:]
    np.multiply(hazards[:, 1:], unused[:, :-1], out=later)
    return found


def _sum_contexts(weighted: Table) -> Table:
    """Shape (segments, contexts, bins) to (segments, bins)."""
    found: Table = np.add.reduce(weighted, axis=1)
    return found
