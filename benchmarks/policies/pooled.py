"""Pools rows: one policy at one pressure, over all cells (workload and seed) that have that pressure."""

from collections.abc import Iterable, Iterator, Sequence
from math import fsum
from typing import NamedTuple

from benchmarks.policies.row_file import Key, Rows
from pbkv_cluster.simulator.evaluation.experiment import BASELINE, BOUND, Row, means

NOISE = 0.005  # of the available tokens, by which a run may exceed the oracle: that is no proven bound


class Cell(NamedTuple):
    """The rows of one policy, LRU and the oracle on one workload with one seed."""

    row: Row
    lru: Row
    oracle: Row


class Pooled(NamedTuple):
    """One policy at one pressure. A ratio to LRU is of sums over the cells, where nothing else is said."""

    policy: str
    pressure: float
    cells: int
    recomputed: float | None  # tokens over LRU's; None if LRU recomputes nothing
    recomputed_best: tuple[float, str] | None  # the lowest such ratio of a workload, its seeds together, and its name
    recomputed_worst: tuple[float, str] | None  # the highest
    gap_closed: float | None  # of what LRU recomputes beyond the bound, share that is saved; None if LRU is the bound
    worst_any: float  # hits in any tier over LRU's: the lowest mean ratio of a workload over its seeds
    worst_workload: str
    latency: float  # mean workflow latency over LRU's
    latency_best: float  # likewise: the lowest mean ratio of a workload over its seeds
    ttft: float  # mean time to the first token over LRU's
    gpu: float  # GPU hits over LRU's: mean of the ratios
    gpu_best: float  # likewise: the highest mean ratio of a workload over its seeds
    gpu_gap_closed: float | None  # share of what the oracle gains on LRU in GPU hits; None if that is nothing
    guard_lru_share: float | None
    cpu_s: tuple[float, str] | None  # processor time of the longest run, and its workload; None: no row has it


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
    row = found[0].row
    worst_any, worst_workload = min((ratio, name) for name, ratio in _by_workload(found, "hit_any"))
    recomputed = [
        (ratio, name) for name, own in _workloads(found) if (ratio := _ratio_of_sums(own, "recomputed_tokens")) is not None
    ]
    return Pooled(
        policy=row.policy,
        pressure=row.pressure,
        cells=len(found),
        recomputed=_ratio_of_sums(found, "recomputed_tokens"),
        recomputed_best=min(recomputed, default=None),
        recomputed_worst=max(recomputed, default=None),
        gap_closed=_gap_closed(found),
        worst_any=worst_any,
        worst_workload=worst_workload,
        latency=_ratio_of_sums(found, "latency_mean_s") or 0.0,
        latency_best=min(ratio for _, ratio in _by_workload(found, "latency_mean_s")),
        ttft=_ratio_of_sums(found, "ttft_mean_s") or 0.0,
        gpu=mean_ratio(found, "hit_gpu"),
        gpu_best=max(ratio for _, ratio in _by_workload(found, "hit_gpu")),
        gpu_gap_closed=_gpu_gap_closed(found),
        guard_lru_share=means([cell.row for cell in found], "guard_lru_share"),
        cpu_s=max(((cell.row.cpu_s, cell.row.workload) for cell in found if cell.row.cpu_s is not None), default=None),
    )


def mean_ratio(found: Sequence[Cell], figure: str) -> float:
    """Mean over the cells of a figure divided by LRU's."""
    return fsum(getattr(cell.row, figure) / getattr(cell.lru, figure) for cell in found) / len(found)


def _by_workload(found: Sequence[Cell], figure: str) -> Iterator[tuple[str, float]]:
    """For each workload, by name, the mean over its seeds of a figure divided by LRU's."""
    for workload, own in _workloads(found):
        yield workload, mean_ratio(own, figure)


def _workloads(found: Sequence[Cell]) -> Iterator[tuple[str, list[Cell]]]:
    for workload in sorted({cell.row.workload for cell in found}):
        yield workload, [cell for cell in found if cell.row.workload == workload]


def _ratio_of_sums(found: Sequence[Cell], figure: str) -> float | None:
    lru = fsum(getattr(cell.lru, figure) for cell in found)
    return fsum(getattr(cell.row, figure) for cell in found) / lru if lru else None


def _gap_closed(found: Sequence[Cell]) -> float | None:
    saved = sum(cell.lru.recomputed_tokens - cell.row.recomputed_tokens for cell in found)
    gap = sum(cell.lru.recomputed_tokens - (cell.oracle.bound_tokens or 0) for cell in found)
    return saved / gap if gap > 0 else None


def _gpu_gap_closed(found: Sequence[Cell]) -> float | None:
    gained = fsum(cell.row.hit_gpu - cell.lru.hit_gpu for cell in found)
    gap = fsum(cell.oracle.hit_gpu - cell.lru.hit_gpu for cell in found)
    return gained / gap if gap > 0 else None


def guard_cost(rows: Rows, policy: str, pressure: float, guarded: str, unguarded: str) -> float | None:
    """By how much the guard lowers the mean ratio to LRU's any-tier hits, over the cells that were run with and without it."""
    with_guard, without = (
        {(cell.row.workload, cell.row.seed): cell for cell in cells(rows, policy, pressure, disturbed)}
        for disturbed in (guarded, unguarded)
    )
    both = sorted(with_guard.keys() & without.keys())
    if not both:
        return None
    return mean_ratio([without[each] for each in both], "hit_any") - mean_ratio([with_guard[each] for each in both], "hit_any")


def worst_beside(rows: Rows, policy: str, pressure: float, disturbed: str, plain: str, figure: str) -> float | None:
    """A figure of a disturbed policy over that of the same policy with another disturbance: the lowest ratio of a cell."""
    ratios = [
        getattr(cell.row, figure) / getattr(other, figure)
        for cell in cells(rows, policy, pressure, disturbed)
        if (other := rows.get(Key(cell.row.workload, cell.row.seed, pressure, policy, plain))) is not None
    ]
    return min(ratios, default=None)


def left_out(rows: Rows, pressures: Iterable[float]) -> Iterator[Row]:
    """LRU's rows in the cells where no capacity gives the pressure."""
    wanted = set(pressures)
    return (row for row in rows.values() if row.policy == BASELINE and row.pressure in wanted and not row.on_target)


def above_oracle(rows: Rows) -> Iterator[tuple[Key, float]]:
    """Runs that recompute less than the bound by more than `NOISE`, and by how much of the available tokens."""
    for key, row in rows.items():
        oracle = rows.get(key._replace(policy=BOUND, disturbed=""))
        if oracle is not None and oracle.bound_tokens is not None and row.on_target and row.available_tokens:
            by = (oracle.bound_tokens - row.recomputed_tokens) / row.available_tokens
            if by > NOISE:
                yield key, by
