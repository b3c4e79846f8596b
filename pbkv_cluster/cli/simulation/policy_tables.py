"""Results of `pbkv simulate` as tables: one per workload, one line per pressure and policy, means over the seeds."""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from pbkv_cluster.cli.output import percent

if TYPE_CHECKING:
    from rich.table import Table

    from pbkv_cluster.simulator.evaluation.experiment import Row

_CAPTION = "Hits: percent of the prompt tokens. Seconds: of a workflow without its pauses; to a step's first token."
_COLUMNS = ("share", "blocks", "GPU", "any", "/ lru", "gap", "mean s", "p95 s", "ttft s")


def policy_tables(rows: "Sequence[Row]") -> "Iterator[Table]":
    """One table for each workload, in the order of the rows."""
    for workload in dict.fromkeys(row.workload for row in rows):
        yield _table(workload, [row for row in rows if row.workload == workload])


def _table(workload: str, rows: "Sequence[Row]") -> "Table":
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    from pbkv_cluster.simulator.evaluation.experiment import means

    title = f"{workload} (an infinite cache hits {percent(means(rows, 'hit_infinite'))})"
    table = Table(title=title, header_style="bold", caption=_CAPTION, box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column("policy", no_wrap=True)
    for name in _COLUMNS:
        table.add_column(name, justify="right", no_wrap=True)
    for pressure in dict.fromkeys(row.pressure for row in rows):
        of_pressure = [row for row in rows if row.pressure == pressure]
        for policy in dict.fromkeys(row.policy for row in of_pressure):
            group = [row for row in of_pressure if row.policy == policy]
            table.add_row(
                policy,
                f"{means(group, 'pressure_measured'):.2f}",
                f"{means(group, 'capacity_blocks'):.0f}",
                *(f"{100 * (means(group, name) or 0.0):.1f}" for name in ("hit_gpu", "hit_any")),
                *(_number(means(group, name)) for name in ("ratio_to_lru", "gap_closed")),
                *(f"{means(group, name):.2f}" for name in ("latency_mean_s", "latency_p95_s", "ttft_mean_s")),
            )
        table.add_section()
    return table


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"
