"""Where policy `pbkv` saves seconds, and where it cannot: a map of situations, in virtual time, on generated workflows.

Each situation is run twice, with LRU on both tiers and with `pbkv`, which starts with what ships and learns as it goes.
"""

import argparse
from dataclasses import replace
from statistics import mean

from rich.console import Console
from rich.table import Table

from benchmarks.regimes.points import WORDS, Point, points
from benchmarks.report import Figure, Report
from pbkv_cluster.core.config import CacheConfig
from pbkv_cluster.core.tokens import BLOCK_TOKENS
from pbkv_cluster.simulator.engine.machines import machine
from pbkv_cluster.simulator.engine.simulation import Setup, simulate
from pbkv_cluster.simulator.traces.files import Trace
from pbkv_cluster.simulator.traces.step_traces import TraceWorkflow
from pbkv_cluster.simulator.workload.applications import END, REVIEW, Agent, Application, Edge, Tool
from pbkv_cluster.simulator.workload.generator import Sizes, generate
from pbkv_cluster.simulator.workload.token_source import TokenSource
from pbkv_cluster.simulator.workload.workload import Mix, make_workload

MACHINE = "h100-14b"
WORKFLOWS = 72
SEED = 0
_SIZES = Sizes(preamble=200, system=1200, task=2500, output=60, tool_result=400)
_MAX_STEPS = 28
_EDIT, _TESTS = Tool("edit_file", 0.5, 0.4), Tool("run_tests", 8.0, 1.5)
# One agent that works with tools until it is done: its whole context comes back in every step.
LOOP = Application(
    "loop",
    "author",
    {"author": Agent((Edge("author", 0.6, tool=_EDIT), Edge("author", 0.35, tool=_TESTS), Edge(END, 0.05)))},
)
APPLICATIONS = {1: LOOP, len(REVIEW.agents): REVIEW}
"""By the number of agents."""

_COLUMNS = ("recomputed / LRU's", "prefill's share of LRU's time", "first token, LRU's / its", "workflow, LRU's / its")


def run(arguments: argparse.Namespace) -> Report:
    """Runs all situations, prints the map and returns it, with mean, best and worst of the situations as figures."""
    table = Table(title="regimes", title_justify="left", title_style="bold")
    for column in ("situation", "value", *_COLUMNS):
        table.add_column(column, justify="left" if column == "situation" else "right")
    details: list[Figure] = []
    known: dict[Point, tuple[float, float, float, float]] = {}
    workflows = 12 if arguments.quick else WORKFLOWS
    for name, value, point in points(arguments.quick):
        if point not in known:
            known[point] = compare(point, workflows)
        shown = f"{value / 1e9:g}" if name == "bandwidth" else f"{value:g}"
        recomputed, prefill, first, workflow = known[point]
        table.add_row(WORDS[name], shown, f"{recomputed:.2f}", f"{prefill:.0%}", f"{first:.2f}", f"{workflow:.2f}")
        for column, figure in zip(_COLUMNS, known[point], strict=True):
            details.append(Figure(f"{WORDS[name]} {shown}: {column}", figure, ""))
    Console(highlight=False).print(table)
    _, _, firsts, gains = zip(*known.values(), strict=True)
    figures = (
        Figure("workflow latency, LRU's over its, mean of the situations", mean(gains), "x", at_least=1.15),
        Figure("workflow latency, LRU's over its, best situation", max(gains), "x", at_least=1.5),
        Figure("workflow latency, LRU's over its, worst situation", min(gains), "x", at_least=0.995),
        Figure("first token, LRU's over its, mean of the situations", mean(firsts), "x"),
        Figure("first token, LRU's over its, best situation", max(firsts), "x"),
    )
    applications = " and ".join(f"`{each.name}`" for each in APPLICATIONS.values())
    sizes = f"{workflows} workflows of {applications}, {MACHINE}, seed {SEED}; virtual time, cost model"
    return Report("regimes", sizes, figures, tuple(details))


def compare(point: Point, count: int) -> tuple[float, float, float, float]:
    """Runs some workflows in a situation. The figures are those of `_COLUMNS`."""
    tokens, blocks = _workload(point, count)
    gpu = machine(MACHINE)
    setup = Setup(
        gpu_blocks=max(blocks, 1),
        host_blocks=round(blocks * point.host),
        cost=replace(gpu.cost(), host_bytes_per_s=point.bandwidth),
    )
    lru = simulate(tokens, replace(setup, policy="lru", cache=CacheConfig(policy="lru", host_policy="lru")))
    ours = simulate(tokens, replace(setup, policy="pbkv", cache=CacheConfig(policy="pbkv")))
    assert lru.ttft is not None
    assert ours.ttft is not None
    assert lru.latency is not None
    assert ours.latency is not None
    return (
        ours.recomputed_tokens / max(1, lru.recomputed_tokens),
        lru.time.shares()["prefill"],
        lru.ttft.mean / ours.ttft.mean,
        lru.latency.mean / ours.latency.mean,
    )


def _workload(point: Point, count: int) -> tuple[TokenSource, int]:
    """The workflows, and the blocks that a GPU of this situation has."""
    application = APPLICATIONS[point.agents]
    sizes = Sizes(*(max(1, round(each * point.prompt)) for each in (_SIZES.preamble, _SIZES.system, _SIZES.task)))
    sizes = replace(sizes, output=point.reply, tool_result=max(1, round(_SIZES.tool_result * point.prompt)))
    workflows = tuple(
        replace(each, steps=tuple(replace(step, pause_s=step.pause_s * point.pause) for step in each.steps))
        for each in generate(count, SEED, sizes, (application,), _MAX_STEPS)
    )
    context = sum(map(_context_tokens, workflows)) / len(workflows)
    longest = max(step.prompt_tokens + step.output_tokens for each in workflows for step in each.steps)
    blocks = max(point.memory * point.concurrency * context, 1.2 * longest) / BLOCK_TOKENS
    mix = Mix(workflows=count, concurrency=point.concurrency, think_scale=0.0)
    return TokenSource(make_workload([Trace(application.name, workflows)], mix, SEED)), round(blocks)


def _context_tokens(workflow: TraceWorkflow) -> int:
    """Tokens of the last prompt and reply of each agent: what its next prompts would begin with."""
    last = {step.agent: step.prompt_tokens + step.output_tokens for step in workflow.steps}
    return sum(last.values())
