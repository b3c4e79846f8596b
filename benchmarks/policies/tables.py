"""Reports on the benchmark of policies: tables of all policies, the cells that were left out, and the figures with goals."""

from collections.abc import Iterator, Sequence
from dataclasses import replace

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from benchmarks.policies.goals import PREFETCH_WORST, with_goals
from benchmarks.policies.job import WHOLE, Disturbance
from benchmarks.policies.pooled import Pooled, above_oracle, cells, guard_cost, left_out, pool, worst_beside
from benchmarks.policies.row_file import Key, Rows, Scene
from benchmarks.report import Figure, Report
from pbkv_cluster.simulator.evaluation.experiment import BASELINE, BOUND, Row

_CAPTION = (
    "Over LRU's: recomputed tokens, first token, workflow latency (without pauses); hits in any tier of the worst workload; "
    "GPU hits. Gaps to the oracle closed: in recomputed tokens, all memory; in GPU hits. By LRU: evicted so by the guard."
)
_HEADINGS = ("recom-\nputed", "\ngap", "worst\nany", "work-\nflow", "first\ntoken", "\nGPU", "GPU\ngap", "by\nLRU", "\ncells")


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
        disturbances: under which they were run; if one is without the guard, it is the second of two.
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
                console.print(_table(scene, pressure, str(disturbance), lines))
            for line in lines:
                details += _details(line, str(disturbance))
                figures += with_goals(line, scene, disturbance)
    if any(not disturbance.guard for disturbance in disturbances):
        figures += _guard_costs(rows, policies, pressures, disturbances)
    figures += _beside_no_prefetch(rows, policies, pressures, disturbances)
    figures += _oracle_check(rows, console)
    for row in sorted(left_out(rows, pressures), key=lambda row: (row.workload, row.seed, row.pressure)):
        console.print(f"left out: {_cell(row)}: LRU gets {100 * row.pressure_measured:.0f} % at the nearest capacity")
    for name in failed:
        console.print(f"failed, see the error above: {name}")
    figures.append(Figure("workloads with a seed that failed", len(failed), "", at_most=0))
    return Report("policies", _sizes(scene, rows), tuple(figures), tuple(details))


def _sizes(scene: Scene, rows: Rows) -> str:
    used = {(key.workload, key.seed) for key in rows}
    workflows = "every workflow once" if scene.workflows is None else f"{scene.workflows} workflows a run"
    part = "all tasks, nothing learnt before" if scene.part == WHOLE else f"tasks of part {scene.part!r}, trained on others"
    names = f"{len({name for name, _ in used})} workloads, {len(used)} with their seeds"
    return f"{names}; {part}; {workflows}, closed loop of {scene.concurrency}; {_memory(scene)}, {_time(scene)}"


def _time(scene: Scene) -> str:
    return f"virtual time of {scene.machine}" if scene.machine else "virtual time"


def _memory(scene: Scene) -> str:
    memory = f"{scene.host_ratio:g} host blocks for each on the GPU" if scene.host_ratio else "GPU tier only"
    memory += f" at {scene.host_gb_per_s:g} GB/s" * bool(scene.host_ratio and scene.host_gb_per_s)
    return f"{scene.workers} workers, {memory}" if scene.workers > 1 else memory


def _table(scene: Scene, pressure: float, disturbed: str, lines: Sequence[Pooled]) -> Table:
    title = f"LRU gets {100 * pressure:g} % of an infinite cache's GPU hits, {_memory(scene)}" + f" ({disturbed})" * bool(
        disturbed
    )
    table = Table(title=title, title_justify="left", title_style="bold", caption=_CAPTION, caption_justify="left")
    table.box, table.padding = SIMPLE_HEAD, (0, 1, 0, 0)
    table.add_column("policy", no_wrap=True)
    for heading in _HEADINGS:
        table.add_column(heading, justify="right", no_wrap=True)
    for line in lines:
        table.add_row(
            line.policy,
            _ratio(line.recomputed),
            _percent(line.gap_closed),
            *(_ratio(value) for value in (line.worst_any, line.latency, line.ttft, line.gpu)),
            _percent(line.gpu_gap_closed),
            _percent(line.guard_lru_share),
            str(line.cells),
        )
    return table


def _ratio(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.0f} %"


def _details(line: Pooled, disturbed: str) -> Iterator[Figure]:
    what = f"{line.policy} at {100 * line.pressure:g} %" + f" ({disturbed})" * bool(disturbed)
    for name, value, unit in (
        ("recomputed tokens over LRU's", line.recomputed, "x"),
        ("gap closed", line.gap_closed, ""),
        (f"hits in any tier over LRU's, worst workload ({line.worst_workload})", line.worst_any, "x"),
        ("workflow latency over LRU's", line.latency, "x"),
        ("workflow latency over LRU's, best workload", line.latency_best, "x"),
        ("first token over LRU's", line.ttft, "x"),
        ("GPU hits over LRU's", line.gpu, "x"),
        ("GPU hits over LRU's, best workload", line.gpu_best, "x"),
        ("gap in GPU hits closed", line.gpu_gap_closed, ""),
        ("evicted by LRU", line.guard_lru_share, ""),
        ("cells", line.cells, ""),
    ):
        if value is not None:
            yield Figure(f"{what}: {name}", value, unit)


def _guard_costs(
    rows: Rows, policies: Sequence[str], pressures: Sequence[float], disturbances: Sequence[Disturbance]
) -> Iterator[Figure]:
    guarded, unguarded = map(str, disturbances)
    for policy in policies:
        for pressure in pressures:
            cost = guard_cost(rows, policy, pressure, guarded, unguarded)
            if cost is not None and policy not in (BASELINE, BOUND):
                yield Figure(f"{policy} at {100 * pressure:g} %: the guard takes, of hits in any tier over LRU's", cost, "x")


def _beside_no_prefetch(
    rows: Rows, policies: Sequence[str], pressures: Sequence[float], disturbances: Sequence[Disturbance]
) -> Iterator[Figure]:
    for disturbance in disturbances:
        plain = str(replace(disturbance, prefetch="none"))
        for policy in policies if disturbance.prefetch != "none" else ():
            for pressure in pressures:
                for figure, what in (("hit_gpu", "GPU hits"), ("hit_any", "hits in any tier")):
                    worst = worst_beside(rows, policy, pressure, str(disturbance), plain, figure)
                    if worst is not None and policy not in (BASELINE, BOUND):
                        name = f"{policy} at {100 * pressure:g} % ({disturbance}): {what} over those without, worst cell"
                        yield Figure(name, worst, "x", at_least=PREFETCH_WORST)


def _oracle_check(rows: Rows, console: Console) -> Iterator[Figure]:
    violations = sorted(above_oracle(rows))
    for key, by in violations:
        what = f"{key.policy} ({key.disturbed})" if key.disturbed else key.policy
        console.print(f"above the oracle: {_cell(key)}: {what}, by {100 * by:.1f} % of the available tokens")
    if any(key.policy == BOUND for key in rows):
        yield Figure("runs that recompute less than the oracle", len(violations), "", at_most=0)


def _cell(of: Row | Key) -> str:
    return f"{of.workload}, seed {of.seed}, {100 * of.pressure:g} %"
