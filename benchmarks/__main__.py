"""`python -m benchmarks [NAME ...] [--json OUT] [--quick]`: runs benchmarks and prints their figures."""

import argparse
import json
import os
from collections.abc import Iterable
from dataclasses import asdict
from importlib import import_module
from pathlib import Path

from benchmarks.peers import benchmark as peers
from benchmarks.policies import benchmark as policies
from benchmarks.predictor import benchmark as predictor
from benchmarks.prior import benchmark as prior
from benchmarks.report import Report, machine, show
from benchmarks.serving import group_chat
from benchmarks.vllm import benchmark as vllm
from benchmarks.vllm_policy import benchmark as vllm_policy

# In this order: idle comes before the cluster's first step.
NAMES = ("index", "engine", "copies", "idle", "gateway", "restart", "metrics")
LONG = {  # they take long, or need more than this environment: they run only if they are named
    "peers": "benchmarks.peers.benchmark",
    "fidelity": "benchmarks.serving.fidelity",
    "regimes": "benchmarks.regimes.benchmark",
    "order": "benchmarks.policies.order",
    "policies": "benchmarks.policies.benchmark",
    "predictor": "benchmarks.predictor.benchmark",
    "prior": "benchmarks.prior.benchmark",
    "groupchat": "benchmarks.serving.group_chat",
    "vllm": "benchmarks.vllm.benchmark",
    "vllm-policy": "benchmarks.vllm_policy.benchmark",
}


def main() -> None:
    known = ", ".join((*NAMES, *LONG))
    parser = argparse.ArgumentParser(prog="benchmarks", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"any of {known}; by default all but {', '.join(LONG)}")
    parser.add_argument("--json", type=Path, metavar="OUT", help="write the figures to this file as well")
    parser.add_argument("--quick", action="store_true", help="smaller sizes and fewer repetitions, to see that it runs")
    peers.add_options(parser)
    policies.add_options(parser)
    predictor.add_options(parser)
    prior.add_options(parser)
    group_chat.add_options(parser)
    vllm.add_options(parser)
    vllm_policy.add_options(parser)
    arguments = parser.parse_args()
    if unknown := set(arguments.names) - {*NAMES, *LONG}:
        parser.error(f"{', '.join(sorted(unknown))}: there are only {known}")
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # torch reads it on import, here and in every child process
    modules = {**{name: f"benchmarks.serving.{name}" for name in NAMES}, **LONG}
    reports = []
    for name in [each for each in modules if each in (arguments.names or NAMES)]:
        for report in _reports(import_module(modules[name]).run(arguments)):
            reports.append(report)
            show(report)
    if arguments.json:
        found = {"machine": machine(), "reports": [asdict(report) for report in reports]}
        arguments.json.write_text(json.dumps(found, indent=2) + "\n")


def _reports(returned: Report | Iterable[Report]) -> Iterable[Report]:
    return (returned,) if isinstance(returned, Report) else returned


if __name__ == "__main__":
    main()
