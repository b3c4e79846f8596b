"""Successive halving (Jamieson & Talwalkar, AISTATS 2016): most of the budget goes to the candidates that do best.

All candidates run in one cell, the better half of them in twice as many cells, and so on, until a rung covers all cells. The
present settings, the first candidate, run in every cell: others are compared with them.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

from pbkv_cluster.core.errors import InvalidArgument
from pbkv_cluster.simulator.tuning.knobs import Values
from pbkv_cluster.simulator.tuning.result import Trial

Cell = TypeVar("Cell")


def candidates_max(budget: int, cells: int, policies: int) -> int:
    """The most candidates whose search takes no more runs than the budget allows.

    Raises:
        InvalidArgument: the budget does not even allow one candidate per policy beside the present settings.
    """
    least = policies + 1
    most = max((number for number in range(least, budget + 1) if _runs(number, cells) <= budget), default=0)
    if not most:
        raise InvalidArgument("budget", f"must be at least {_runs(least, cells)} for {cells} cells (traces x pressures)")
    return most


def search(
    candidates: Sequence[Values], cells: Sequence[Cell], extend: Callable[[Trial, Sequence[Cell]], Trial]
) -> list[Trial]:
    """Runs candidates in cells by successive halving.

    Args:
        candidates: settings, the present ones first.
        cells: in the order in which candidates run in them.
        extend: runs a candidate in those of some cells that it has not run in, and returns it with the new scores.

    Returns:
        The present settings first, then the candidates of the last rung, the best first, then those that dropped out, the last
        to drop out first.
    """
    present, *alive = [Trial(values, ()) for values in candidates]
    dropped: list[Trial] = []
    for number, reach in _rungs(len(candidates), len(cells)):
        present = extend(present, cells[:reach])
        alive.sort(key=lambda trial: -trial.score if trial.scores else 0.0)  # stable: of equals the first
        dropped = alive[number:] + dropped
        alive = [extend(trial, cells[:reach]) for trial in alive[:number]]
    return [present, *sorted(alive, key=lambda trial: -trial.score), *dropped]


def _rungs(candidates: int, cells: int) -> Iterator[tuple[int, int]]:
    """For each rung, how many candidates beside the present settings run, and in how many cells they have run then."""
    alive, reach = candidates - 1, 1
    while True:
        yield alive, min(reach, cells)
        if reach >= cells:
            return
        alive, reach = max(1, alive // 2), 2 * reach


def _runs(candidates: int, cells: int) -> int:
    runs, covered = cells, 0  # the present settings run in every cell
    for alive, reach in _rungs(candidates, cells):
        runs += alive * (reach - covered)
        covered = reach
    return runs
