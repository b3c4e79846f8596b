"""Results of `pbkv simulate` as tables: one per workload and pressure, one line per policy, means over the seeds."""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from pbkv_cluster.cli.terminal.output import figures_table, percent

if TYPE_CHECKING:
    from rich.table import Table

    from pbkv_cluster.simulator.evaluation.experiment import Row

_CAPTION = (
    "Recomputed: prompt tokens that a cache could have saved; gap: of LRU's, that a clairvoyant saves. "
    "Seconds over LRU's, mean and 90th percentile: to a step's first token, of a step, of a workflow without its pauses. "
    "GPU hits: percent of the prompt tokens, and over LRU's."
)
_COLUMNS = ("recomputed", "/lru", "gap", "1st token", "step", "workflow", "GPU", "/lru")
_DOING = {"tool": "in pauses", "queue": "queued", "load": "loading", "prefill": "in prefill", "decode": "decoding"}


def policy_tables(rows: "Sequence[Row]") -> "Iterator[Table | str]":
    """For each workload and pressure, in the order of the rows, a table, and what the time of workflows goes to under LRU."""
    for workload, pressure in dict.fromkeys((row.workload, row.pressure) for row in rows):
        group = [row for row in rows if (row.workload, row.pressure) == (workload, pressure)]
        yield _table(group)
        yield _time(group)


def _table(rows: "Sequence[Row]") -> "Table":
    from pbkv_cluster.simulator.evaluation.experiment import means

    blocks = f"{means(rows, 'capacity_blocks'):,.0f} blocks on the GPU, {means(rows, 'host_blocks'):,.0f} in host memory"
    share = f"LRU gets {percent(means(rows, 'pressure_measured'))} of an infinite cache's GPU hits"
    title = f"{rows[0].workload}: {blocks}; {share} ({percent(means(rows, 'hit_infinite'))} of the prompt tokens)"
    table = figures_table(("policy",), _COLUMNS, title)
    table.caption, table.caption_justify = _CAPTION, "left"
    for policy in dict.fromkeys(row.policy for row in rows):
        own = [row for row in rows if row.policy == policy]
        table.add_row(
            policy,
            f"{means(own, 'recomputed_tokens'):,.0f}",
            _number(_over_lru(own, "recomputed_tokens")),
            _number(means(own, "gap_closed")),
            *(
                f"{_number(_over_lru(own, f'{what}_mean_s'))}/{_number(_over_lru(own, f'{what}_p90_s'))}"
                for what in ("ttft", "step", "latency")
            ),
            f"{100 * (means(own, 'hit_gpu') or 0.0):.1f}",
            _number(_over_lru(own, "hit_gpu")),
        )
    return table


def _time(rows: "Sequence[Row]") -> str:
    """What the time of a workflow goes to under the first policy of some rows, LRU if it is among them."""
    from pbkv_cluster.simulator.evaluation.experiment import BASELINE, means

    policy = BASELINE if any(row.policy == BASELINE for row in rows) else rows[0].policy
    own = [row for row in rows if row.policy == policy]
    shares = {kind: sum(row.time_shares[kind] for row in own) / len(own) for kind in _DOING}
    spent = ", ".join(f"{percent(shares[kind])} {doing}" for kind, doing in _DOING.items())
    seconds = [f"{means(own, f'{what}_mean_s'):.2f} s" for what in ("ttft", "step", "latency")]
    return (
        f"Under {policy}, the time of a workflow is spent {spent}. Mean to the first token {seconds[0]}, "
        f"of a step {seconds[1]}, of a workflow without its pauses {seconds[2]}.{_worker_changes(own)}\n"
    )


def _worker_changes(rows: "Sequence[Row]") -> str:
    from pbkv_cluster.simulator.evaluation.experiment import means

    return f" {means(rows, 'worker_changes'):,.0f} steps changed the worker." if any(row.worker_changes for row in rows) else ""


def _over_lru(rows: "Sequence[Row]", name: str) -> float | None:
    """Mean of a figure divided by LRU's, over the rows that have it."""
    values = [value for row in rows if row.over_lru is not None and (value := row.over_lru[name]) is not None]
    return sum(values) / len(values) if values else None


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"
