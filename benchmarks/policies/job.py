"""The options of the benchmark of policies, and the runs that they ask for."""

import argparse
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, get_args

from benchmarks.policies.row_file import Key, Rows, Scene
from pbkv_cluster.cache.policies import POLICIES
from pbkv_cluster.core.config import PredictorConfig
from pbkv_cluster.core.errors import InvalidArgument
from pbkv_cluster.predictor_service.predictor import PREDICTORS
from pbkv_cluster.simulator.engine.machines import machine_names
from pbkv_cluster.simulator.engine.simulation import Setup
from pbkv_cluster.simulator.evaluation.experiment import BASELINE, BOUND

TRACES = Path(__file__).resolve().parents[2] / "../shared/workloads"
ROWS = Path(__file__).parents[1] / "results" / "policies.jsonl"
WORKLOADS = (
    *("autocoderover", "chatdev_cli", "chatdev_humaneval", "chatdev_programdev", "chatdev_prompted", "chatdev_qwen"),
    *("metagpt_code", "sweagent", "taubench_airline", "whowhen_magentic"),
)
QUICK_WORKLOADS = ("chatdev_cli", "metagpt_code")
POLICY_NAMES = ("lru", "oracle", "retired-lru", "lfu", "kvflow", "continuum", "pbkv-paper", "pbkv")
PRESSURES = (0.25, 0.45, 0.65, 0.8)
SEEDS = (0, 1)
Prefetch = Literal["none", "conservative", "queue"]
WHOLE = "whole"  # the part that is the whole trace


@dataclass(frozen=True, slots=True)
class Disturbance:
    """What is changed about a policy's run. Runs of LRU and the oracle are never changed."""

    noise: float = 0.0
    adversary: bool = False
    guard: bool = True
    predictor: str = ""  # "": the default one
    prefetch: Prefetch = "none"

    def __str__(self) -> str:
        parts = [f"noise {self.noise:g}" * bool(self.noise), "adversary" * self.adversary, "unguarded" * (not self.guard)]
        parts.append(f"predictor {self.predictor}" * bool(self.predictor))
        parts.append(f"prefetch {self.prefetch}" * (self.prefetch != "none"))
        return ", ".join(filter(None, parts))

    def on(self, setup: Setup) -> Setup:
        cache = setup.cache.model_copy(update={"guard": self.guard, "prefetch": self.prefetch})
        return replace(setup, noise=self.noise, adversary=self.adversary, cache=cache)


@dataclass(frozen=True, slots=True)
class Job:
    """Everything that the options ask for."""

    scene: Scene
    workloads: tuple[str, ...]
    policies: tuple[str, ...]  # LRU and the oracle first, because the others are measured against them
    pressures: tuple[float, ...]
    seeds: tuple[int, ...]
    disturbances: tuple[Disturbance, ...]
    traces: Path
    again: frozenset[str] = frozenset()  # policies that are run again though they have rows

    @property
    def predictor(self) -> PredictorConfig:
        """Configuration of the predictor in all runs."""
        name = self.disturbances[0].predictor
        return PredictorConfig(model=name) if name else PredictorConfig()

    def trace_path(self, workload: str) -> Path:
        return self.traces / f"{workload}.jsonl.gz"

    def includes(self, key: Key) -> bool:
        return key.workload in self.workloads and key.seed in self.seeds and key.pressure in self.pressures

    def keys(self, workload: str, seed: int) -> Iterator[tuple[Key, Disturbance]]:
        """The runs of a workload with a seed, in order."""
        for policy in self.policies:
            for number, disturbance in enumerate(self.disturbances):
                if policy in (BASELINE, BOUND) and number:
                    break
                label = "" if policy in (BASELINE, BOUND) else str(disturbance)
                for pressure in self.pressures:
                    yield Key(workload, seed, pressure, policy, label), disturbance

    def missing(self, workload: str, seed: int, rows: Rows) -> list[tuple[Key, Disturbance]]:
        """The runs of a workload with a seed that have no row yet, without those whose pressure no capacity gives."""
        off_target = {(key.workload, key.seed, key.pressure) for key, row in rows.items() if not row.on_target}
        return [
            (key, disturbance)
            for key, disturbance in self.keys(workload, seed)
            if (key not in rows or key.policy in self.again) and (key.workload, key.seed, key.pressure) not in off_target
        ]


def add_options(parser: argparse.ArgumentParser) -> None:
    """Adds the options of this benchmark."""
    group = parser.add_argument_group("policies", "options of that benchmark alone")
    group.add_argument("--part", choices=("tune", "show"), default="show", help="tasks to run, a fifth each; default show")
    group.add_argument("--workloads", metavar="A,B", help="traces by name; by default all but whowhen_captain")
    group.add_argument("--policies", metavar="A,B", help="policies; lru and oracle are always run")
    group.add_argument("--pressures", metavar="P,Q", help="capacities, as shares of an infinite cache's hits that LRU gets")
    group.add_argument("--host-ratio", type=float, default=2.0, metavar="R", help="host blocks for each on the GPU; default 2")
    group.add_argument("--workers", type=int, default=1, metavar="N", help="workers, between which steps are routed; default 1")
    group.add_argument("--machine", default="", metavar="NAME", help="machine to simulate, such as h100-70b")
    group.add_argument(
        "--host-gb-per-s", type=float, default=0.0, metavar="X", help="between GPU and host memory; default: the machine's"
    )
    group.add_argument("--concurrency", type=int, default=32, metavar="N", help="workflows that run at a time; default 32")
    group.add_argument(
        "--think-scale", type=float, default=8.0, metavar="X", help="factor of the added pauses, median 2 s; default 8"
    )
    group.add_argument(
        "--prefetch",
        action="append",
        choices=get_args(Prefetch),
        help="of all policies; may be repeated, to compare; default off",
    )
    group.add_argument("--workflows", type=int, default=150, metavar="N", help="in each run; default 150")
    group.add_argument("--seeds", type=int, default=len(SEEDS), metavar="N", help="seeds 0 to N - 1; default 2")
    group.add_argument("--online", action="store_true", help="no training; every workflow of the trace once")
    group.add_argument(
        "--noise", type=float, default=0.0, metavar="SHARE", help="share of the forecasts that are replaced by random ones"
    )
    group.add_argument("--adversary", action="store_true", help="negate the values of the policies")
    group.add_argument("--no-guard", action="store_true", help="run without the guard too, and compare")
    group.add_argument(
        "--predictor", default="", metavar="NAME", help="another predictor, such as an expert alone; its rows are kept apart"
    )
    group.add_argument("--processes", type=int, default=2, metavar="N", help="workloads that run at the same time; default 2")
    group.add_argument(
        "--rows", type=Path, metavar="FILE", help=f"file of rows; default {ROWS.name} in results/, none with --quick"
    )
    group.add_argument("--again", action="store_true", help="run the policies named by --policies again")
    group.add_argument("--traces", type=Path, default=TRACES, metavar="DIR", help="folder of the recorded traces")


def job_of(arguments: argparse.Namespace) -> Job:
    """The job that the options ask for.

    Raises:
        ValueError: an option is wrong; the message names it.
    """
    quick = arguments.quick
    named = _names(arguments.policies)
    try:
        for name in named:
            POLICIES.get(name)
    except InvalidArgument as error:
        raise ValueError(f"--policies: {error.problem}") from error
    workloads = _names(arguments.workloads) or (QUICK_WORKLOADS if quick else WORKLOADS)
    for name in workloads:
        if not (arguments.traces / f"{name}.jsonl.gz").exists():
            raise ValueError(f"--workloads: there is no {name}.jsonl.gz in {arguments.traces}")
    if not 0 <= arguments.noise <= 1:
        raise ValueError(f"--noise: must be from 0 to 1, got {arguments.noise}")
    if min(arguments.seeds, arguments.processes, arguments.workers) < 1:
        raise ValueError("--seeds, --processes and --workers: must be at least 1")
    if arguments.think_scale < 0 or arguments.host_gb_per_s < 0 or min(arguments.concurrency, arguments.workflows) < 1:
        raise ValueError("--think-scale, --host-gb-per-s, --concurrency and --workflows: must not be below 0, 0, 1 and 1")
    if not 0 <= arguments.host_ratio < math.inf:
        raise ValueError(f"--host-ratio: must be finite and not negative, got {arguments.host_ratio}")
    if arguments.machine and arguments.machine not in machine_names():
        raise ValueError(f"--machine: must be one of {', '.join(machine_names())}, got {arguments.machine!r}")
    if arguments.again and not named:
        raise ValueError("--again: needs --policies, to say which")
    part = WHOLE if arguments.online else arguments.part
    workflows = 40 if quick else None if arguments.online else arguments.workflows
    if arguments.predictor:
        try:
            PREDICTORS.get(arguments.predictor)
        except InvalidArgument as error:
            raise ValueError(f"--predictor: {error.problem}") from error
    plain = Disturbance(arguments.noise, arguments.adversary, predictor=arguments.predictor)
    compared = tuple(replace(plain, prefetch=mode) for mode in dict.fromkeys(arguments.prefetch or ["none"]))
    if arguments.no_guard:
        if len(compared) > 1:
            raise ValueError("--no-guard: compares one kind of --prefetch only")
        compared = (compared[0], replace(compared[0], guard=False))
    return Job(
        Scene(
            part,
            workflows,
            arguments.concurrency,
            arguments.think_scale,
            arguments.host_ratio,
            arguments.workers,
            arguments.machine,
            arguments.host_gb_per_s,
        ),
        workloads,
        tuple(dict.fromkeys((BASELINE, BOUND, *(named or POLICY_NAMES)))),
        _pressures(arguments.pressures) or ((0.45,) if quick else PRESSURES),
        (0,) if quick else tuple(range(arguments.seeds)),
        compared,
        arguments.traces,
        frozenset(named) if arguments.again else frozenset(),
    )


def _names(text: str | None) -> tuple[str, ...]:
    return tuple(dict.fromkeys(part.strip() for part in text.split(","))) if text else ()


def _pressures(text: str | None) -> tuple[float, ...]:
    try:
        values = tuple(float(part) for part in _names(text))
    except ValueError:
        raise ValueError(f"--pressures: must be numbers with commas between them, got {text!r}") from None
    if not all(0 < value < 1 for value in values):
        raise ValueError(f"--pressures: must be above 0 and below 1, got {text!r}")
    return values
