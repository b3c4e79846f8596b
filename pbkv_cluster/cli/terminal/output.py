"""How results are printed: tables, and rates with their denominators."""

from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from pbkv_cluster.simulator.spread import Spread


def result_console(json_target: str | None) -> "Console":
    """A console for tables and progress: on standard error if the JSON goes to standard output.

    It prints strings as they are, without markup, and escapes what a terminal would obey (see `plain_text`).
    """
    from pbkv_cluster.cli.terminal.console import PlainConsole

    return PlainConsole(stderr=json_target == "-")


def figures_table(names: Iterable[str], figures: Iterable[str], title: str | None = None) -> "Table":
    """A table without rows, whose first columns are names and the others figures.

    All columns may fold: where the figures could not, the names would have no room in a narrow terminal.
    """
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    table = Table(title=title, title_justify="left", header_style="bold", box=SIMPLE_HEAD, padding=0)
    for name in names:
        table.add_column(name)
    for figure in figures:
        table.add_column(figure, justify="right")
    return table


def share(tokens: int, of: int) -> str:
    """A number of tokens as a share of `of` tokens: `41.2 % of 1,000`."""
    return f"{100 * tokens / of:.1f} % of {of:,}" if of else "none yet"


def percent(rate: float | None) -> str:
    """A rate in percent; a dash for None."""
    return "-" if rate is None else f"{100 * rate:.1f} %"


def seconds(spread: "Spread | None", which: str) -> str:
    """One field of a spread, in ms or s; a dash for None."""
    if spread is None:
        return "-"
    value: float = getattr(spread, which)
    return f"{1000 * value:.0f} ms" if value < 1 else f"{value:.2f} s"
