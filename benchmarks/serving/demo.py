"""`pbkv demo` with several seeds: what policy `pbkv` saves over LRU on real processes, as medians, since one run scatters."""

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any, NamedTuple

from benchmarks.report import Figure, Report

__all__ = ["add_options", "run"]

# Field of a demo, in words, unit, and the project's goal: at most, at least.
_FIGURES: tuple[tuple[str, str, str, float | None, float | None], ...] = (
    ("recomputed", "recomputed tokens over LRU's", "x", None, None),
    ("first_token", "first token, LRU's over its", "x", None, 1.4),
    ("workflow", "workflow, LRU's over its", "x", None, 1.2),
    ("wall_s", "duration of a demo", "s", 180.0, None),
)


class Demo(NamedTuple):
    """One run."""

    seed: int
    recomputed: float  # tokens over LRU's
    first_token: float  # LRU's mean over that of `pbkv`
    workflow: float  # likewise
    wall_s: float


def add_options(parser: argparse.ArgumentParser) -> None:
    """Adds the options of this benchmark."""
    group = parser.add_argument_group("demo", "option of that benchmark")
    group.add_argument("--demo-seeds", type=int, default=3, metavar="N", help="seeds 0 to N - 1; default 3")


def run(arguments: argparse.Namespace) -> Report:
    """Runs the demo with each seed, one after the other, and reports."""
    if arguments.demo_seeds < 1:
        sys.exit(f"benchmarks: --demo-seeds: must be at least 1, got {arguments.demo_seeds}")
    sizes = ("--workflows", "4") if arguments.quick else ()
    demos = [_played(seed, sizes) for seed in range(1 if arguments.quick else arguments.demo_seeds)]
    return report(demos, "4 workflows" if arguments.quick else "`pbkv demo` as it is")


def _played(seed: int, sizes: Sequence[str]) -> Demo:
    with tempfile.TemporaryDirectory() as folder:
        written = Path(folder) / "demo.json"
        command = [sys.executable, "-m", "pbkv_cluster.cli", "demo", "--seed", str(seed), "--json", str(written), *sizes]
        start = perf_counter()
        if code := subprocess.run(command, stdout=sys.stderr, check=False).returncode:
            sys.exit(f"benchmarks: pbkv demo --seed {seed} has ended with {code}; the reason is above")
        return demo_of(seed, json.loads(written.read_text()), perf_counter() - start)


def demo_of(seed: int, reports: dict[str, Any], wall_s: float) -> Demo:
    """What the reports of both policies, as the demo writes them, say of a run."""
    lru, ours = reports["lru"], reports["pbkv"]
    first_token, workflow = (lru[what]["mean_s"] / ours[what]["mean_s"] for what in ("ttft", "workflow_latency"))
    return Demo(seed, ours["recomputed_tokens"] / max(1, lru["recomputed_tokens"]), first_token, workflow, wall_s)


def report(demos: Sequence[Demo], sizes: str) -> Report:
    """Medians, with their goals; each run is a detail."""
    figures = [
        Figure(f"{what}, median", median(getattr(demo, name) for demo in demos), unit, at_most, at_least)
        for name, what, unit, at_most, at_least in _FIGURES
    ]
    details = [
        Figure(f"seed {demo.seed}: {what}", getattr(demo, name), unit) for demo in demos for name, what, unit, *_ in _FIGURES
    ]
    return Report("demo", f"{sizes}; {len(demos)} seeds, real processes on the CPU", tuple(figures), tuple(details))
