"""The predictor on recorded workflows: accuracy, time and memory.

Each trace is split by task: 60 % to train on, 40 % to forecast. Another split moves a figure by half a point, so several splits
say more than one. Accuracy depends on the machine only through rounding; times and memory do depend on it.
"""

import argparse
import sys
from collections.abc import Iterator

from benchmarks.policies.job import QUICK_WORKLOADS, WORKLOADS
from benchmarks.predictor.accuracy import Recorded, ablation, accuracy, drift, read
from benchmarks.predictor.latency import latency
from benchmarks.predictor.load import memory, speed
from benchmarks.report import Report
from pbkv_cluster.core.errors import PbkvError

__all__ = ["PARTS", "add_options", "run"]

PARTS = ("accuracy", "drift", "ablation", "speed", "latency", "memory")
_SIDES = ("train", "test")
_QUICK_WORKFLOWS = 12  # of each part of a trace, with --quick
_LOAD_WORKFLOWS = 20  # of each part of a trace, where time or memory is measured; more would only take longer


def add_options(parser: argparse.ArgumentParser) -> None:
    """Adds the options of this benchmark; it shares --traces and --workloads with `policies`."""
    group = parser.add_argument_group("predictor", "options of that benchmark; it takes --traces and --workloads too")
    group.add_argument("--parts", default=",".join(PARTS), metavar="A,B", help=f"any of {', '.join(PARTS)}; default all")
    group.add_argument(
        "--splits",
        type=int,
        default=1,
        metavar="N",
        help="number of different splits of each trace, which all count; default 1",
    )


def run(arguments: argparse.Namespace) -> Iterator[Report]:
    """Yields a report for each part, as soon as that is done."""
    chosen = [name.strip() for name in arguments.parts.split(",")]
    unknown = set(chosen) - {*PARTS}
    if unknown:
        sys.exit(f"benchmarks: --parts: there is no {', '.join(sorted(unknown))}, only {', '.join(PARTS)}")
    try:
        recorded = _recorded(arguments)
    except (PbkvError, ValueError) as error:
        sys.exit(f"benchmarks: {error}")
    accuracies = {"accuracy": accuracy, "drift": drift, "ablation": ablation}
    loads = {"speed": speed, "latency": latency, "memory": memory}
    train, test = ([events for each in recorded for events in getattr(each, part)[:_LOAD_WORKFLOWS]] for part in _SIDES)
    for name in PARTS:
        if name in chosen:
            yield accuracies[name](recorded) if name in accuracies else loads[name](train, test, arguments.quick)


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
