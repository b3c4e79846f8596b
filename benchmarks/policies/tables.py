"""Reports on the benchmark of policies: tables of all policies, the cells that were left out, and the figures with goals."""

from collections.abc import Iterator, Sequence

from rich.console import Console
from rich.table import Table

from benchmarks.policies.job import WHOLE, Disturbance
from benchmarks.policies.pooled import Pooled, above_oracle, cells, guard_cost, left_out, pool
from benchmarks.policies.row_file import Key, Rows, Scene
from benchmarks.report import Figure, Report
from pbkv_cluster.simulator.evaluation.experiment import BASELINE, BOUND, Row

OURS = "pbkv"  # the policy that the goals are for
GAP_GOALS = {0.25: 0.66, 0.45: 0.71, 0.65: 0.82, 0.8: 0.90}
RATIO_GOALS = {0.25: 1.48, 0.45: 1.54, 0.65: 1.40, 0.8: 1.22}
ONLINE_GAP_GOALS = {0.25: 0.76, 0.45: 0.66, 0.65: 0.63, 0.8: 0.63}
WORST_UNDER_NOISE, WORST_UNDER_ADVERSARY = 0.98, 0.97  # of LRU's hits, on any workload, whatever the policy


def policy_report(
    scene: Scene,
    policies: Sequence[str],
    pressures: Sequence[float],
    disturbances: Sequence[Disturbance],
    rows: Rows,
    failed: Sequence[str],
) -> Report:
    """Prints the tables, and returns the figures.

    Args:
        scene: of all rows.
        policies: that were run.
        pressures: at which they were run.
        disturbances: under which they were run; if there are two, with the guard and without it.
        rows: all rows.
        failed: names of units of work that ended with an error.
    """
    console = Console(highlight=False)
    figures, details = list[Figure](), list[Figure]()
    for disturbance in disturbances:
        for pressure in pressures:
            found = [pool(cells(rows, policy, pressure, str(disturbance))) for policy in policies]
            lines = [line for line in found if line is not None]
            if lines:
                console.print(_table(pressure, str(disturbance), lines))
            for line in lines:
                details += _details(line, str(disturbance))
                figures += _with_goals(line, scene, disturbance)
    if len(disturbances) > 1:
        figures += _guard_costs(rows, policies, pressures, disturbances)
    figures += _oracle_check(rows, console)
    for row in sorted(left_out(rows, pressures), key=lambda row: (row.workload, row.seed, row.pressure)):
        console.print(f"left out: {_cell(row)}: LRU gets {100 * row.pressure_measured:.0f} % at the nearest capacity")
    for name in failed:
        console.print(f"failed, see the error above: {name}")
    figures.append(Figure("workloads with a seed that failed", len(failed), "", at_most=0))
    used = {(key.workload, key.seed) for key in rows}
    workflows = "every workflow once" if scene.workflows is None else f"{scene.workflows} workflows a run"
    part = "all tasks, nothing learnt before" if scene.part == WHOLE else f"tasks of part {scene.part!r}, trained on others"
    sizes = f"{len({name for name, _ in used})} workloads, {len(used)} with their seeds; {part}; {workflows}, closed loop of"
    return Report("policies", f"{sizes} {scene.concurrency}; GPU tier only, virtual time", tuple(figures), tuple(details))


def _table(pressure: float, disturbed: str, lines: Sequence[Pooled]) -> Table:
    title = f"LRU gets {100 * pressure:g} % of an infinite cache's hits" + f" ({disturbed})" * bool(disturbed)
    caption = "Gap to the oracle closed; hits over LRU's, mean and of the worst workload; blocks that the guard evicted by LRU."
    table = Table(title=title, title_justify="left", title_style="bold", caption=caption, caption_justify="left")
    table.add_column("policy", no_wrap=True)
    for heading in ("gap", "/ LRU", "worst", "by LRU", "cells"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("the worst", no_wrap=True)
    for line in lines:
        gap, guard = ("-" if value is None else f"{100 * value:.0f} %" for value in (line.gap_closed, line.guard_lru_share))
        ratios = f"{line.ratio_to_lru:.3f}", f"{line.worst_ratio:.3f}"
        table.add_row(line.policy, gap, *ratios, guard, str(line.cells), line.worst_workload)
    return table


def _details(line: Pooled, disturbed: str) -> Iterator[Figure]:
    what = f"{line.policy} at {100 * line.pressure:g} %" + f" ({disturbed})" * bool(disturbed)
    if line.gap_closed is not None:
        yield Figure(f"{what}: gap closed", line.gap_closed, "")
    yield Figure(f"{what}: hits over LRU's", line.ratio_to_lru, "x")
    yield Figure(f"{what}: hits over LRU's, worst workload ({line.worst_workload})", line.worst_ratio, "x")
    if line.guard_lru_share is not None:
        yield Figure(f"{what}: evicted by LRU", line.guard_lru_share, "")
    yield Figure(f"{what}: cells", line.cells, "")


def _with_goals(line: Pooled, scene: Scene, disturbance: Disturbance) -> Iterator[Figure]:
    """A policy with noise or as an adversary has to stay close to LRU; ours has to reach its goals when undisturbed."""
    what = f"{line.policy} at {100 * line.pressure:g} %"
    if not disturbance.guard or line.policy in (BASELINE, BOUND):
        return
    if disturbance.adversary or disturbance.noise:
        least = WORST_UNDER_ADVERSARY if disturbance.adversary else WORST_UNDER_NOISE
        name = f"{what} ({disturbance}): worst workload over LRU, {line.worst_workload}"
        yield Figure(name, line.worst_ratio, "x", at_least=least)
    elif line.policy == OURS:
        online = scene.part == WHOLE
        if line.gap_closed is not None:
            goal = (ONLINE_GAP_GOALS if online else GAP_GOALS).get(line.pressure)
            yield Figure(f"{what}: gap closed", line.gap_closed, "", at_least=goal)
        yield Figure(
            f"{what}: hits over LRU's", line.ratio_to_lru, "x", at_least=None if online else RATIO_GOALS.get(line.pressure)
        )


def _guard_costs(
    rows: Rows, policies: Sequence[str], pressures: Sequence[float], disturbances: Sequence[Disturbance]
) -> Iterator[Figure]:
    guarded, unguarded = map(str, disturbances)
    for policy in policies:
        for pressure in pressures:
            cost = guard_cost(rows, policy, pressure, guarded, unguarded)
            if cost is not None and policy not in (BASELINE, BOUND):
                yield Figure(f"{policy} at {100 * pressure:g} %: the guard takes, of hits over LRU's", cost, "x")


def _oracle_check(rows: Rows, console: Console) -> Iterator[Figure]:
    violations = sorted(above_oracle(rows))
    for key, by in violations:
        what = f"{key.policy} ({key.disturbed})" if key.disturbed else key.policy
        console.print(f"above the oracle: {_cell(key)}: {what}, by {100 * by:.1f} % of the prompt tokens")
    if any(key.policy == BOUND for key in rows):
        yield Figure("runs that hit more than the oracle", len(violations), "", at_most=0)


def _cell(of: Row | Key) -> str:
    return f"{of.workload}, seed {of.seed}, {100 * of.pressure:g} %"
