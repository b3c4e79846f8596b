"""The predictor on recorded workflows: how well it forecasts, how fast, and what it takes.

Each trace is split by task: 60 % to learn from, 40 % to forecast. Which tasks these are moves a figure by half a point, so
that several splits tell more than one. Accuracy depends on the machine in no more than how it rounds; times do.
"""

import argparse
import sys
from collections.abc import Iterator

from benchmarks.policy_job import QUICK_WORKLOADS, WORKLOADS
from benchmarks.predictor_accuracy import Recorded, ablation, accuracy, drift, read
from benchmarks.predictor_latency import latency
from benchmarks.predictor_load import memory, speed
from benchmarks.report import Report
from pbkv_cluster.core.errors import PbkvError

__all__ = ["PARTS", "add_options", "run"]

PARTS = ("accuracy", "drift", "ablation", "speed", "latency", "memory")
_QUICK_WORKFLOWS = 12  # of each part of a trace
_LOAD = 20  # the same, for what is measured in seconds or bytes: more changes nothing but the time it takes


def add_options(parser: argparse.ArgumentParser) -> None:
    """Adds what only this benchmark takes; --traces and --workloads are those of `policies`."""
    group = parser.add_argument_group("predictor", "options of that benchmark; it takes --traces and --workloads too")
    group.add_argument("--parts", default=",".join(PARTS), metavar="A,B", help=f"any of {', '.join(PARTS)}; default all")
    group.add_argument("--splits", type=int, default=1, metavar="N", help="ways to split each trace, that all count; default 1")


def run(arguments: argparse.Namespace) -> Iterator[Report]:
    """A report for each part, as soon as it is there."""
    chosen = [name.strip() for name in arguments.parts.split(",")]
    unknown = set(chosen) - {*PARTS}
    if unknown:
        sys.exit(f"benchmarks: --parts: there is no {', '.join(sorted(unknown))}, only {', '.join(PARTS)}")
    try:
        recorded = _recorded(arguments)
    except (PbkvError, ValueError) as error:
        sys.exit(f"benchmarks: {error}")
    measured = {"accuracy": accuracy, "drift": drift, "ablation": ablation}
    for name in PARTS:
        if name not in chosen:
            continue
        if name in measured:
            yield measured[name](recorded)
            continue
        train, test = ([events for each in recorded for events in getattr(each, part)[:_LOAD]] for part in ("train", "test"))
        load = {"speed": speed, "latency": latency, "memory": memory}
        yield load[name](train, test, arguments.quick)


def _recorded(arguments: argparse.Namespace) -> list[Recorded]:
    named = [name.strip() for name in arguments.workloads.split(",")] if arguments.workloads else ()
    workloads = named or (QUICK_WORKLOADS if arguments.quick else WORKLOADS)
    for name in workloads:
        if not (arguments.traces / f"{name}.jsonl.gz").exists():
            raise ValueError(f"--workloads: there is no {name}.jsonl.gz in {arguments.traces}")
    if arguments.splits < 1:
        raise ValueError(f"--splits: must be at least 1, got {arguments.splits}")
    limit = _QUICK_WORKFLOWS if arguments.quick else None
    paths = [arguments.traces / f"{name}.jsonl.gz" for name in workloads]
    return [read(path, limit, number) for number in range(arguments.splits) for path in paths]
