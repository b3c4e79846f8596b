"""The figures of a benchmark, and how they are printed."""

import os
import platform
import sys
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from rich.console import Console
from rich.table import Table

_PACKAGES = ("torch", "transformers", "grpcio", "cupy-cuda13x", "cupy-cuda12x")


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
    packages = ", ".join(f"{name} {found}" for name in _PACKAGES if (found := _version(name)))
    hardware = f"{_gpu()}{_cpu()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}"
    return f"{hardware}; Python {platform.python_version()}, {packages}"


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


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _gpu() -> str:
    """The GPU, where a benchmark has used one."""
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_available() or not torch.cuda.is_initialized():
        return ""
    return f"{torch.cuda.get_device_name()}, CUDA {torch.version.cuda}, "


def _cpu() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()
