"""Pools rows: one policy at one pressure, over all cells (workload and seed) that have that pressure."""

from collections.abc import Iterable, Iterator, Sequence
from math import fsum
from typing import NamedTuple

from benchmarks.policies.row_file import Key, Rows
from pbkv_cluster.simulator.evaluation.experiment import BASELINE, BOUND, Row, means

NOISE = 0.005  # of the prompt tokens, by which a run may exceed the oracle: that is no proven bound


class Cell(NamedTuple):
    """The rows of one policy, LRU and the oracle on one workload with one seed."""

    row: Row
    lru: Row
    oracle: Row


class Pooled(NamedTuple):
    """One policy at one pressure."""

    policy: str
    pressure: float
    cells: int
    gap_closed: float | None  # share of the sum of the cells' gaps; None if that is 0
    ratio_to_lru: float  # mean
    worst_ratio: float  # lowest mean ratio of a workload over its seeds
    worst_workload: str
    guard_lru_share: float | None


def cells(rows: Rows, policy: str, pressure: float, disturbed: str = "") -> list[Cell]:
    """The cells that have the pressure and all three rows."""
    found = []
    for key, row in rows.items():
        own = "" if policy in (BASELINE, BOUND) else disturbed
        if (key.policy, key.pressure, key.disturbed) == (policy, pressure, own):
            lru, oracle = (rows.get(key._replace(policy=name, disturbed="")) for name in (BASELINE, BOUND))
            if lru is not None and oracle is not None and lru.on_target:
                found.append(Cell(row, lru, oracle))
    return found


def pool(found: Sequence[Cell]) -> Pooled | None:
    """The figures of some cells of one policy and pressure; None if there are no cells."""
    if not found:
        return None
    gap = fsum(cell.oracle.hit_gpu - cell.lru.hit_gpu for cell in found)
    ratios = {
        workload: mean_ratio([cell for cell in found if cell.row.workload == workload])
        for workload in sorted({cell.row.workload for cell in found})
    }
    worst = min(ratios, key=lambda name: ratios[name])
    row = found[0].row
    return Pooled(
        row.policy,
        row.pressure,
        len(found),
        fsum(cell.row.hit_gpu - cell.lru.hit_gpu for cell in found) / gap if gap > 0 else None,
        mean_ratio(found),
        ratios[worst],
        worst,
        means([cell.row for cell in found], "guard_lru_share"),
    )


def mean_ratio(found: Sequence[Cell]) -> float:
    """Mean over the cells of the hit rate divided by LRU's."""
    return fsum(cell.row.hit_gpu / cell.lru.hit_gpu for cell in found) / len(found)


def guard_cost(rows: Rows, policy: str, pressure: float, guarded: str, unguarded: str) -> float | None:
    """By how much the guard lowers the mean ratio to LRU, over the cells that were run with and without it."""
    with_guard, without = (
        {(cell.row.workload, cell.row.seed): cell for cell in cells(rows, policy, pressure, disturbed)}
        for disturbed in (guarded, unguarded)
    )
    both = sorted(with_guard.keys() & without.keys())
    if not both:
        return None
    return mean_ratio([without[each] for each in both]) - mean_ratio([with_guard[each] for each in both])


def left_out(rows: Rows, pressures: Iterable[float]) -> Iterator[Row]:
    """LRU's rows in the cells where no capacity gives the pressure."""
    wanted = set(pressures)
    return (row for row in rows.values() if row.policy == BASELINE and row.pressure in wanted and not row.on_target)


def above_oracle(rows: Rows) -> Iterator[tuple[Key, float]]:
    """Runs that hit more than the oracle by more than `NOISE`, and by how much."""
    for key, row in rows.items():
        bound = rows.get(key._replace(policy=BOUND, disturbed=""))
        if bound is not None and row.on_target and row.hit_gpu > bound.hit_gpu + NOISE:
            yield key, row.hit_gpu - bound.hit_gpu
