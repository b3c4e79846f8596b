"""`python -m benchmarks [NAME ...] [--json OUT] [--quick]`: runs benchmarks and prints their figures."""

import argparse
import json
import os
import sys
from collections.abc import Iterable
from dataclasses import asdict
from datetime import UTC, datetime
from importlib import import_module
from pathlib import Path
from typing import Any

from benchmarks.report import Report, machine, show

# In this order: idle comes before the cluster's first step.
NAMES = ("index", "engine", "copies", "idle", "gateway", "restart", "metrics")
LONG = {  # they take long, or need more than this environment: they run only if they are named
    "gpu": "benchmarks.gpu.benchmark",
    "peers": "benchmarks.peers.benchmark",
    "arena": "benchmarks.serving.arena_start",
    "dashboard": "benchmarks.serving.dashboard",
    "demo": "benchmarks.serving.demo",
    "fidelity": "benchmarks.serving.fidelity",
    "regimes": "benchmarks.regimes.benchmark",
    "tools": "benchmarks.tools.benchmark",
    "order": "benchmarks.policies.order",
    "policies": "benchmarks.policies.benchmark",
    "predictor": "benchmarks.predictor.benchmark",
    "prior": "benchmarks.prior.benchmark",
    "groupchat": "benchmarks.serving.group_chat",
    "vllm": "benchmarks.vllm.benchmark",
    "engine-vllm": "benchmarks.vllm.engines",
    "vllm-policy": "benchmarks.vllm_policy.benchmark",
}
WITH_OPTIONS = (
    "gpu",
    "peers",
    "demo",
    "fidelity",
    "policies",
    "predictor",
    "prior",
    "tools",
    "groupchat",
    "vllm",
    "vllm-policy",
)


def main() -> None:
    known = ", ".join((*NAMES, *LONG))
    parser = argparse.ArgumentParser(prog="benchmarks", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"any of {known}; by default all but {', '.join(LONG)}")
    parser.add_argument("--json", type=Path, metavar="OUT", help="write the figures to this file as well")
    parser.add_argument("--quick", action="store_true", help="smaller sizes and fewer repetitions, to see that it runs")
    # A machine with a GPU may have nothing that the other benchmarks import.
    for name in ("gpu",) if sys.argv[1:2] == ["gpu"] else WITH_OPTIONS:
        import_module(LONG[name]).add_options(parser)
    arguments = parser.parse_args()
    if unknown := set(arguments.names) - {*NAMES, *LONG}:
        parser.error(f"{', '.join(sorted(unknown))}: there are only {known}")
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # torch reads it on import, here and in every child process
    modules = {**{name: f"benchmarks.serving.{name}" for name in NAMES}, **LONG}
    found: dict[str, Any] = {"date": datetime.now(UTC).isoformat(timespec="seconds"), "reports": []}
    for name in [each for each in modules if each in (arguments.names or NAMES)]:
        for report in _reports(import_module(modules[name]).run(arguments)):
            show(report)
            found["reports"].append(asdict(report))
            if arguments.json:  # each time, so that nothing is lost if a later benchmark fails
                arguments.json.write_text(json.dumps({**found, "machine": machine()}, indent=2) + "\n")


def _reports(returned: Report | Iterable[Report]) -> Iterable[Report]:
    return (returned,) if isinstance(returned, Report) else returned


if __name__ == "__main__":
    main()
