"""What the prior of policy `pbkv` is worth to a workload that it was not learnt from, in virtual time.

Each workload runs on the tasks that no policy is trained on, with a host tier and without, `pbkv` on both tiers. Taught are its
predictor and its access models in turn:

- `nothing`: neither prior nor training.
- `prior`: a prior learnt from the workloads of all other families, and nothing else.
- `others`: the same prior, and training by workloads of other families.
- `own`: the same prior, and training by its own training tasks.

Then all workloads run as one, with the prior, taught nothing: what each of them has of the cache, over what LRU gives it.
"""

import argparse
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import chain
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks.policies.benchmark import SALT, SHARES
from benchmarks.policies.job import WORKLOADS
from benchmarks.prior.learn import family, learn
from benchmarks.report import Figure, Report
from pbkv_cluster.core.config import CacheConfig, PredictorConfig
from pbkv_cluster.core.errors import PbkvError
from pbkv_cluster.predictor_service.access.prior import save_prior
from pbkv_cluster.simulator.engine.simulation import Setup, simulate
from pbkv_cluster.simulator.evaluation.experiment import train_state
from pbkv_cluster.simulator.evaluation.pressure import PressureScale
from pbkv_cluster.simulator.traces.files import Trace, load_trace
from pbkv_cluster.simulator.traces.split import split
from pbkv_cluster.simulator.workload.token_source import TokenSource
from pbkv_cluster.simulator.workload.workload import Mix, make_workload

__all__ = ["add_options", "run"]

TAUGHT = ("nothing", "prior", "others", "own")
SMALL = ("chatdev_cli", "metagpt_code", "taubench_airline", "whowhen_magentic")
_PRESSURE = 0.45
_CONCURRENCY, _THINK_SCALE = 32, 8.0
_OTHERS_WORKFLOWS = 30  # of each other workload
_LRU = CacheConfig(policy="lru", host_policy="lru", guard=False)
_OURS = CacheConfig(policy="pbkv", host_policy="pbkv")


def add_options(parser: argparse.ArgumentParser) -> None:
    """Adds the options of this benchmark; it shares --traces, --workloads and --seeds with `policies`."""
    group = parser.add_argument_group("prior", "options of that benchmark; it takes --traces, --workloads and --seeds too")
    group.add_argument("--taught", default=",".join(TAUGHT), metavar="A,B", help=f"any of {', '.join(TAUGHT)}; default all")
    group.add_argument("--host-ratios", default="0,2", metavar="R,S", help="blocks in host memory for each on the GPU")
    group.add_argument("--run-workflows", type=int, default=100, metavar="N", help="workflows of a run; default 100")
    group.add_argument("--no-mix", action="store_true", help="leave out the mix of all workloads")


def run(arguments: argparse.Namespace) -> Report:
    """Runs all, and reports."""
    names = tuple(arguments.workloads.split(",")) if arguments.workloads else SMALL[: 2 if arguments.quick else None]
    taught = tuple(arguments.taught.split(","))
    if unknown := {*taught} - {*TAUGHT}:
        sys.exit(f"benchmarks: --taught: there is no {', '.join(sorted(unknown))}, only {', '.join(TAUGHT)}")
    try:
        ratios = tuple(float(ratio) for ratio in arguments.host_ratios.split(","))
        seeds = range(1 if arguments.quick else arguments.seeds)
        workflows = 40 if arguments.quick else arguments.run_workflows
        figures = list(_alone(arguments.traces, names, taught, ratios, seeds, workflows))
        if not arguments.no_mix:
            figures += _mixed(arguments.traces, names, ratios, seeds, workflows * len(names))
    except (PbkvError, ValueError, OSError) as error:
        sys.exit(f"benchmarks: {error}")
    sizes = f"{', '.join(names)}; {workflows} workflows of each, {_CONCURRENCY} at a time, {len(seeds)} seeds"
    return Report("prior", f"{sizes}; LRU at {100 * _PRESSURE:g} %, virtual time", tuple(figures))


def _alone(
    traces: Path, names: Sequence[str], taught: Sequence[str], ratios: Sequence[float], seeds: Sequence[int], workflows: int
) -> Iterator[Figure]:
    """Recomputed tokens of each workload by itself, over LRU's, and of all of them together."""
    total = Counter[tuple[str, float]]()
    with TemporaryDirectory() as folder:
        for name in names:
            own, test = _parts(traces, name)
            setups = {way: _setup(way, traces, name, own, Path(folder)) for way in taught}
            mine = Counter[tuple[str, float]]()
            for seed in seeds:
                tokens = TokenSource(make_workload([test], Mix(workflows, _CONCURRENCY, _THINK_SCALE), seed))
                blocks = PressureScale(tokens, Setup(0)).find(_PRESSURE).blocks
                for ratio in ratios:
                    for way, setup in {"lru": Setup(0, cache=_LRU), **setups}.items():
                        sized = replace(setup, seed=seed, gpu_blocks=blocks, host_blocks=round(ratio * blocks))
                        mine[way, ratio] += simulate(tokens, sized).recomputed_tokens
            yield from _ratios(name, mine, taught, ratios)
            total.update(mine)
    yield from _ratios("all", total, taught, ratios)


def _mixed(
    traces: Path, names: Sequence[str], ratios: Sequence[float], seeds: Sequence[int], workflows: int
) -> Iterator[Figure]:
    """Tokens that each workload has from the cache when all run together, over what LRU gives it."""
    tests = [_parts(traces, name)[1] for name in names]
    hits = Counter[tuple[str, str, float]]()
    for seed in seeds:
        tokens = TokenSource(make_workload(tests, Mix(workflows, _CONCURRENCY, _THINK_SCALE), seed))
        blocks = PressureScale(tokens, Setup(0)).find(_PRESSURE).blocks
        for ratio in ratios:
            for policy, cache in (("lru", _LRU), ("pbkv", _OURS)):
                setup = Setup(blocks, round(ratio * blocks), policy, seed=seed, cache=cache)
                for record in simulate(tokens, setup).steps:
                    workload = tokens.workload.arrivals[record.arrival].workflow.workload
                    hits[workload, policy, ratio] += sum(amount for _, amount in record.delivered)
    for workload in sorted({workload for workload, _, _ in hits}):
        for ratio in ratios:
            share = hits[workload, "pbkv", ratio] / hits[workload, "lru", ratio]
            yield Figure(f"{workload} in a mix, host ratio {ratio:g}: hits in any tier over LRU's", share, "x")


def _setup(way: str, traces: Path, name: str, own: Trace, folder: Path) -> Setup:
    path = folder / f"without-{family(name)}.prior"
    if way != "nothing" and not path.exists():
        save_prior(path, learn(traces, [family(name)]))
    predictor = PredictorConfig(prior="off" if way == "nothing" else str(path))
    setup = Setup(0, policy="pbkv", cache=_OURS, predictor=predictor)
    if way == "own":
        return train_state(setup, [own])
    if way == "others":
        return train_state(setup, [_head(traces, other) for other in WORKLOADS if family(other) != family(name)])
    return setup


def _head(traces: Path, name: str) -> Trace:
    trace = _parts(traces, name)[0]
    return replace(trace, workflows=trace.workflows[:_OTHERS_WORKFLOWS], starts_at=None)


def _parts(traces: Path, name: str) -> tuple[Trace, Trace]:
    """The training tasks of a workload, and all others."""
    parts = split(load_trace(traces / f"{name}.jsonl.gz"), SHARES, SALT)
    rest = tuple(chain.from_iterable(parts[part].workflows for part in SHARES if part != "train"))
    return parts["train"], replace(parts["show"], workflows=rest, starts_at=None)


def _ratios(name: str, tokens: Counter[tuple[str, float]], taught: Sequence[str], ratios: Sequence[float]) -> Iterator[Figure]:
    for ratio in ratios:
        for way in taught:
            share = tokens[way, ratio] / tokens["lru", ratio]
            yield Figure(f"{name}, host ratio {ratio:g}, taught {way}: recomputed tokens over LRU's", share, "x")
