"""Replay reports as a table: one column per report, and ratios to the first.

What a user pays for comes first: tokens computed again, and seconds. Where blocks were hit explains these, and follows.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING

from pbkv_cluster.cli.terminal.output import percent, seconds

if TYPE_CHECKING:
    from rich.table import Table

    from pbkv_cluster.core.usage import Tier
    from pbkv_cluster.simulator.replay.report import ReplayReport
    from pbkv_cluster.simulator.spread import Spread

_Number = float | None
_Row = tuple[str, Callable[["ReplayReport"], _Number], Callable[["ReplayReport"], str]]


def report_table(reports: Mapping[str, "ReplayReport"], title: str | None = None) -> "Table":
    """A table of reports by name. Rates are shares of the prompt tokens, whose number has a row below them."""
    from rich.table import Table

    table = Table(title=title, header_style="bold", caption="Hit rates are shares of the prompt tokens.")
    names = list(reports)
    table.add_column("")
    for name in names:
        table.add_column(name, justify="right")
    for name in names[1:]:
        table.add_column(f"{name} / {names[0]}", justify="right")
    for label, number, text in _rows(list(reports.values())):
        first, *others = (number(report) for report in reports.values())
        table.add_row(label, *(text(report) for report in reports.values()), *(_ratio(other, first) for other in others))
    return table


def _rows(reports: "list[ReplayReport]") -> list[_Row]:
    from pbkv_cluster.core.usage import Tier

    shown = [tier for tier in Tier if tier in (Tier.GPU, Tier.HOST) or any(r.meter.delivered.get(tier) for r in reports)]
    return [
        ("recomputed tokens", lambda r: r.recomputed_tokens, lambda r: f"{r.recomputed_tokens:,}"),
        *_spread("time to first token", lambda r: r.ttft),
        *_spread("step latency", lambda r: r.step_latency),
        *_spread("workflow latency", lambda r: r.workflow_latency),
        *(_rate(f"delivered from {tier.value}", partial(_delivered, tier)) for tier in shown),
        _rate("delivered (used)", lambda r: r.meter.delivered_rate()),
        _rate("captured (in some tier)", lambda r: r.meter.captured_rate),
        _rate("available (infinite cache)", lambda r: r.meter.available_rate),
        ("prompt tokens", lambda r: r.meter.prompt_tokens, lambda r: f"{r.meter.prompt_tokens:,}"),
        ("steps", lambda r: r.meter.steps, lambda r: f"{r.meter.steps:,}"),
        ("workflows completed", lambda r: r.completed, lambda r: f"{r.completed:,}"),
        ("failures", lambda r: None, lambda r: str(len(r.failures))),
        ("retries", lambda r: None, lambda r: str(r.retries)),
        ("wall time", lambda r: r.wall_s, lambda r: f"{r.wall_s:.1f} s"),
    ]


def _delivered(tier: "Tier", report: "ReplayReport") -> _Number:
    return report.meter.delivered_rate(tier)


def _rate(label: str, rate: "Callable[[ReplayReport], _Number]") -> _Row:
    return (label, rate, lambda report: percent(rate(report)))


def _spread(label: str, of: "Callable[[ReplayReport], Spread | None]") -> list[_Row]:
    def row(which: str) -> _Row:
        def number(report: "ReplayReport") -> _Number:
            spread = of(report)
            return None if spread is None else getattr(spread, which)

        return (f"{label}, {which}", number, lambda report: seconds(of(report), which))

    return [row("mean"), row("p50"), row("p95")]


def _ratio(other: _Number, first: _Number) -> str:
    return "" if other is None or not first else f"{other / first:.2f}"
