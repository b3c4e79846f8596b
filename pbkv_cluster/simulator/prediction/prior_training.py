"""Learns a prior of access models from recorded workloads: counts in contexts of structure alone.

Each workload gives each row at most `_ROW_MAX` observations, and workloads of one family together as much as the square root of
their number; a row that fewer than two families have is left out. In the prior, a row has at most `_PSEUDO_COUNTS`.

The weights of contexts are not part of it. Learnt on other workloads, they made new ones recompute more, and so did counts that
weigh four times as much.
"""

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from pbkv_cluster.core.workflow.access_log import AccessLog
from pbkv_cluster.reuse.model.access_model import AccessModel
from pbkv_cluster.reuse.model.contexts import STRUCTURAL_CONTEXTS, context_rows
from pbkv_cluster.reuse.model.examples import Examples, examples
from pbkv_cluster.reuse.model.hazard import BIN_STARTS, BINS, BITS, HazardModel, Table
from pbkv_cluster.reuse.model.next_event import NextEventModel

_ROW_MAX = 30.0  # observations of a row by one workload
_PSEUDO_COUNTS = 1.0
_FAMILIES_MIN = 2
_MOST_EXAMPLES = 20_000  # of one workload; and as many workflows as these are from
_GRID = 64  # counts are multiples of 1 / _GRID, so that they compress well


class _Counts(NamedTuple):
    """What one workload has observed in contexts of structure."""

    rows: npt.NDArray[np.int64]
    at_risk: Table  # [rows, bins]
    uses: Table  # [rows, bins]


def learn_prior(workloads: Mapping[str, Sequence[AccessLog]], families: Mapping[str, str]) -> AccessModel:
    """A prior learnt from the logs of some workloads.

    Args:
        workloads: logs of each, in order.
        families: of each workload. Workloads of one family resemble each other more than a new workload will.
    """
    return _prior({name: _count(_lessons(logs)) for name, logs in workloads.items()}, families)


def _lessons(logs: Sequence[AccessLog]) -> list[Examples]:
    """Examples of each workflow, as far as they are used, as they are when a model has learnt nothing but the ones before."""
    events, found, total = NextEventModel(), list[Examples](), 0
    for log in logs:
        each = examples(log.steps, events)
        events.learn(log.steps)
        total += len(each.when)
        if found and total > _MOST_EXAMPLES:
            break
        found.append(each)
    return found


def _count(lessons: Collection[Examples]) -> _Counts:
    facts, _, distance, blocks = (np.concatenate(column) for column in zip(*lessons, strict=True))
    places = context_rows(facts, BITS)[:, STRUCTURAL_CONTEXTS]
    outcome = np.where(distance > 0, np.searchsorted(BIN_STARTS, distance, side="right") - 1, BINS)
    importance = np.minimum(1.0, 0.25 + blocks / 8.0)
    uses = np.empty((HazardModel.rows(), BINS + 1))
    for at in range(BINS + 1):  # the last: no use
        amount = np.repeat(importance * (outcome == at), places.shape[1])
        uses[:, at] = np.bincount(places.ravel(), amount, HazardModel.rows())
    at_risk = uses[:, ::-1].cumsum(axis=1)[:, ::-1]
    rows = np.flatnonzero(at_risk[:, 0])
    scale = np.minimum(1.0, _ROW_MAX / at_risk[rows, :1])
    return _Counts(rows, (at_risk[rows, :-1] * scale).astype(np.float32), (uses[rows, :-1] * scale).astype(np.float32))


def _prior(counts: Mapping[str, _Counts], families: Mapping[str, str]) -> AccessModel:
    sizes = Counter(families[name] for name in counts)
    at_risk, uses = (np.zeros((HazardModel.rows(), BINS), dtype=np.float32) for _ in range(2))
    seen: dict[str, npt.NDArray[np.bool_]] = {}  # rows, by family
    for name, own in counts.items():
        share = np.float32(sizes[families[name]] ** -0.5)
        at_risk[own.rows] += share * own.at_risk
        uses[own.rows] += share * own.uses
        seen.setdefault(families[name], np.zeros(HazardModel.rows(), dtype=np.bool_))[own.rows] = True
    rows = np.flatnonzero(sum(each.astype(np.int64) for each in seen.values()) >= _FAMILIES_MIN)
    scale = np.minimum(1.0, _PSEUDO_COUNTS / at_risk[rows, :1])
    some_uses = np.rint(uses[rows] * scale * _GRID) / _GRID
    none = np.rint((at_risk[rows, -1:] - uses[rows, -1:]) * scale * _GRID) / _GRID
    some_at_risk = np.concatenate([some_uses, none], axis=1)[:, ::-1].cumsum(axis=1)[:, ::-1][:, :-1]
    prior = AccessModel()
    at_risk_rows, uses_rows = some_at_risk.astype(np.float32), some_uses.astype(np.float32)
    prior.hazard.put(rows.astype(np.int32), at_risk_rows, uses_rows, prior.hazard.weights.copy())
    return prior
