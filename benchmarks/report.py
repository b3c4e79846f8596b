"""The figures of a benchmark, and how they are printed."""

import os
import platform
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from rich.console import Console
from rich.table import Table


@dataclass(frozen=True, slots=True)
class Figure:
    """One measurement. Its goal, if it has one, is the project's budget for it."""

    name: str
    value: float
    unit: str  # "x" for a ratio, "" for a share or a count
    at_most: float | None = None
    at_least: float | None = None

    @property
    def goal(self) -> str:
        if self.at_most is not None:
            return f"≤ {self.at_most:g}"
        return "" if self.at_least is None else f"≥ {self.at_least:g}"

    @property
    def met(self) -> bool | None:
        """Whether the goal is met; None without a goal."""
        if self.at_most is not None:
            return self.value <= self.at_most
        return None if self.at_least is None else self.value >= self.at_least


@dataclass(frozen=True, slots=True)
class Report:
    """The figures of one benchmark."""

    benchmark: str
    sizes: str  # what was run, in one line
    figures: tuple[Figure, ...]
    details: tuple[Figure, ...] = ()  # written to JSON, but not printed


def machine() -> str:
    """The machine, its load, and the versions of packages that figures depend on, in one line."""
    packages = ", ".join(f"{name} {version(name)}" for name in ("torch", "transformers", "grpcio"))
    return f"{_cpu()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}; Python {platform.python_version()}, {packages}"


def show(report: Report) -> None:
    """Prints a report as a table, and below it what was run and on which machine."""
    console = Console(highlight=False)
    table = Table(title=report.benchmark, title_justify="left", title_style="bold")
    table.add_column("what")
    for heading in ("figure", "unit", "goal", ""):
        table.add_column(heading, justify="right")
    for figure in report.figures:
        verdict = {None: "", True: "met", False: "missed"}[figure.met]
        table.add_row(figure.name, f"{figure.value:.4g}", figure.unit, figure.goal, verdict)
    console.print(table)
    console.print(f"{report.sizes}. {machine()}", soft_wrap=True)


def _cpu() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()
