"""What the order of a worker's queue gives, in virtual time, at loads that one GPU can and cannot serve.

Each recorded workload is run in both orders, with the same arrivals, on caches that evict by LRU, so that nothing but the order
differs. Latency of a workflow is the sum over its steps, from submission to last token.
"""

import argparse
import random
from collections import defaultdict
from statistics import mean

from rich.console import Console
from rich.table import Table

from benchmarks.policies.job import TRACES
from benchmarks.report import Figure, Report
from pbkv_cluster.core.config import CacheConfig, EngineConfig
from pbkv_cluster.simulator.engine.machines import machine
from pbkv_cluster.simulator.engine.result import SimulationResult
from pbkv_cluster.simulator.engine.simulation import Setup, simulate
from pbkv_cluster.simulator.traces.files import load_trace
from pbkv_cluster.simulator.workload.token_source import TokenSource
from pbkv_cluster.simulator.workload.workload import Mix, make_workload

MACHINE = "h100-14b"
LOADS = (  # workload, workflows a second, workflows
    ("metagpt_code", 0.16, 120),
    ("metagpt_code", 2.0, 120),
    ("taubench_airline", 0.28, 160),
    ("taubench_airline", 4.0, 120),
)
QUICK_WORKFLOWS = 10
GPU_BLOCKS, HOST_BLOCKS = 1500, 3000
SEED = 0
_COLUMNS = ("mean", "p95", "longest wait of a step", "hits")


def run(arguments: argparse.Namespace) -> Report:
    """Runs all loads in both orders, prints a table and returns its figures."""
    table = Table(title="order", title_justify="left", title_style="bold")
    for column in ("workload", "arrivals / s", "order", *_COLUMNS):
        table.add_column(column, justify="right")
    gains: dict[str, list[float]] = defaultdict(list)
    details: list[Figure] = []
    for workload, rate, workflows in LOADS:
        count = QUICK_WORKFLOWS if arguments.quick else workflows
        plain, cached = (_figures(workload, rate, count, order) for order in ("arrival", "cached"))
        for order, found in (("arrival", plain), ("cached", cached)):
            mean_s, p95_s, wait_s, hits = found
            table.add_row(workload, f"{rate:g}", order, f"{mean_s:.1f} s", f"{p95_s:.1f} s", f"{wait_s:.1f} s", f"{hits:.3f}")
            details += [
                Figure(f"{workload} at {rate:g}/s, {order}: {name}", value, "")
                for name, value in zip(_COLUMNS, found, strict=True)
            ]
        for name, before, after in zip(("mean", "p95"), plain, cached, strict=False):
            gains[name].append(before / after)
    Console(highlight=False).print(table)
    figures = tuple(
        Figure(f"workflow latency by arrival over `cached`, {name}, {which.__name__} of all loads", which(values), "x")
        for name, values in gains.items()
        for which in (mean, min, max)
    )
    sizes = f"{MACHINE}, {GPU_BLOCKS} + {HOST_BLOCKS} blocks, seed {SEED}; virtual time, cost model"
    return Report("order", sizes, figures, tuple(details))


def _figures(workload: str, rate: float, count: int, order: str) -> tuple[float, float, float, float]:
    """The figures of `_COLUMNS`."""
    draws, starts, now = random.Random(SEED), list[float](), 0.0
    for _ in range(count):
        now += draws.expovariate(rate)
        starts.append(now)
    trace = load_trace(TRACES / f"{workload}.jsonl.gz")
    tokens = TokenSource(make_workload([trace], Mix(workflows=count, think_scale=1.0), SEED, starts))
    setup = Setup(
        gpu_blocks=max(GPU_BLOCKS, tokens.blocks()[0] + 2),
        host_blocks=HOST_BLOCKS,
        policy="lru",
        cost=machine(MACHINE).cost(),
        engine=EngineConfig.model_validate({"order": order}),
        cache=CacheConfig(policy="lru", host_policy="lru"),
    )
    result = simulate(tokens, setup)
    latencies = _latencies(result)
    wait_s = max(step.started_at - step.submitted_at for step in result.steps)
    return mean(latencies), latencies[int(0.95 * len(latencies))], wait_s, result.hit_any


def _latencies(result: SimulationResult) -> list[float]:
    by_workflow: dict[int, float] = defaultdict(float)
    for step in result.steps:
        by_workflow[step.arrival] += step.ended_at - step.submitted_at
    return sorted(by_workflow.values())
