"""What the prior of policy `pbkv` is worth to a workload that it was not learnt from, in virtual time.

Each workload runs on the tasks that no policy is trained on, with a host tier and without, `pbkv` on both tiers. Taught are its
predictor and its access models in turn:

- `nothing`: neither prior nor training.
- `prior`: a prior learnt from the workloads of all other families, and nothing else.
- `others`: the same prior, and training by workloads of other families.
- `own`: the same prior, and training by its own training tasks.

Then all workloads run together with the prior, taught nothing, in a mix and as a drift from one half of them to the other: what
each of them has of the cache, over what LRU gives it, and whether it would have more alone (`together`).
"""

import argparse
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks.policies.job import WORKLOADS
from benchmarks.prior.learn import family, learn
from benchmarks.prior.scene import CONCURRENCY, LRU, OURS, PRESSURE, THINK_SCALE, parts
from benchmarks.prior.together import Tally
from benchmarks.report import Figure, Report
from pbkv_cluster.core.config import PredictorConfig
from pbkv_cluster.core.errors import PbkvError
from pbkv_cluster.predictor_service.access.prior import save_prior
from pbkv_cluster.simulator.engine.simulation import Setup, simulate
from pbkv_cluster.simulator.evaluation.experiment import train_state
from pbkv_cluster.simulator.evaluation.pressure import PressureScale
from pbkv_cluster.simulator.traces.files import Trace
from pbkv_cluster.simulator.workload.token_source import TokenSource
from pbkv_cluster.simulator.workload.workload import Mix, make_workload

__all__ = ["add_options", "run"]

PARTS = ("taught", "mix", "drift")
TAUGHT = ("nothing", "prior", "others", "own")
SMALL = ("chatdev_cli", "metagpt_code", "taubench_airline", "whowhen_magentic")
_OTHERS_WORKFLOWS = 30  # of each other workload


def add_options(parser: argparse.ArgumentParser) -> None:
    """Adds the options of this benchmark; it shares --traces, --workloads and --seeds with `policies`."""
    group = parser.add_argument_group("prior", "options of that benchmark; it takes --traces, --workloads and --seeds too")
    group.add_argument("--prior-parts", default=",".join(PARTS), metavar="A,B", help=f"any of {', '.join(PARTS)}; default all")
    group.add_argument("--taught", default=",".join(TAUGHT), metavar="A,B", help=f"any of {', '.join(TAUGHT)}; default all")
    group.add_argument("--host-ratios", default="0,2", metavar="R,S", help="blocks in host memory for each on the GPU")
    group.add_argument("--run-workflows", type=int, default=100, metavar="N", help="workflows of a run; default 100")


def run(arguments: argparse.Namespace) -> Report:
    """Runs all, and reports."""
    names = tuple(arguments.workloads.split(",")) if arguments.workloads else SMALL[: 2 if arguments.quick else None]
    shown, taught = (
        _known(option, given.split(","), known)
        for option, given, known in (
            ("--prior-parts", arguments.prior_parts, PARTS),
            ("--taught", arguments.taught, TAUGHT),
        )
    )
    try:
        ratios = tuple(float(ratio) for ratio in arguments.host_ratios.split(","))
        seeds = range(1 if arguments.quick else arguments.seeds)
        workflows = 40 if arguments.quick else arguments.run_workflows
        figures, details = list[Figure](), list[Figure]()
        if "taught" in shown:
            figures += _taught(arguments.traces, names, taught, ratios, seeds, workflows)
        for part in shown:
            if part != "taught":
                tally = Tally()
                for seed in seeds:
                    tests = [parts(arguments.traces, name)[1] for name in names]
                    tally.add(tests, ratios, seed, workflows * len(names), drift=part == "drift")
                figures += tally.figures(f"a {part}")
                details += tally.details(f"a {part}")
    except (PbkvError, ValueError, OSError) as error:
        sys.exit(f"benchmarks: {error}")
    sizes = f"{', '.join(names)}; {workflows} workflows of each, {CONCURRENCY} at a time, {len(seeds)} seeds"
    return Report("prior", f"{sizes}; LRU at {100 * PRESSURE:g} %, virtual time", tuple(figures), tuple(details))


def _known(option: str, given: Sequence[str], known: Sequence[str]) -> tuple[str, ...]:
    if unknown := {*given} - {*known}:
        sys.exit(f"benchmarks: {option}: there is no {', '.join(sorted(unknown))}, only {', '.join(known)}")
    return tuple(given)


def _taught(
    traces: Path, names: Sequence[str], taught: Sequence[str], ratios: Sequence[float], seeds: Sequence[int], workflows: int
) -> Iterator[Figure]:
    """Recomputed tokens of each workload by itself, over LRU's, and of all of them together."""
    total = Counter[tuple[str, float]]()
    with TemporaryDirectory() as folder:
        for name in names:
            own, test = parts(traces, name)
            setups = {way: _setup(way, traces, name, own, Path(folder)) for way in taught}
            mine = Counter[tuple[str, float]]()
            for seed in seeds:
                tokens = TokenSource(make_workload([test], Mix(workflows, CONCURRENCY, THINK_SCALE), seed))
                blocks = PressureScale(tokens, Setup(0)).find(PRESSURE).blocks
                for ratio in ratios:
                    for way, setup in {"lru": Setup(0, cache=LRU), **setups}.items():
                        sized = replace(setup, seed=seed, gpu_blocks=blocks, host_blocks=round(ratio * blocks))
                        mine[way, ratio] += simulate(tokens, sized).recomputed_tokens
            yield from _ratios(name, mine, taught, ratios)
            total.update(mine)
    yield from _ratios("all", total, taught, ratios)


def _setup(way: str, traces: Path, name: str, own: Trace, folder: Path) -> Setup:
    path = folder / f"without-{family(name)}.prior"
    if way != "nothing" and not path.exists():
        save_prior(path, learn(traces, [family(name)]))
    predictor = PredictorConfig(prior="off" if way == "nothing" else str(path))
    setup = Setup(0, policy="pbkv", cache=OURS, predictor=predictor)
    if way == "own":
        return train_state(setup, [own])
    if way == "others":
        return train_state(setup, [_head(traces, other) for other in WORKLOADS if family(other) != family(name)])
    return setup


def _head(traces: Path, name: str) -> Trace:
    trace = parts(traces, name)[0]
    return replace(trace, workflows=trace.workflows[:_OTHERS_WORKFLOWS], starts_at=None)


def _ratios(name: str, tokens: Counter[tuple[str, float]], taught: Sequence[str], ratios: Sequence[float]) -> Iterator[Figure]:
    for ratio in ratios:
        for way in taught:
            share = tokens[way, ratio] / tokens["lru", ratio]
            yield Figure(f"{name}, host ratio {ratio:g}, taught {way}: recomputed tokens over LRU's", share, "x")
