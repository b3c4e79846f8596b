"""First token and workflow latency with each mode of prefetch, on recorded workflows whose tool calls are announced.

Policy `pbkv`, with what ships and nothing learnt before, ranks the blocks of both tiers, and knows from the announcements when
a workflow comes back. So prefetch loads blocks before a tool call is expected to end. The logs of the traces leave out what
tools take, so pauses are drawn beside what was logged.
"""

import argparse
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from statistics import geometric_mean

from benchmarks.policies.job import TRACES
from benchmarks.report import Figure, Report
from pbkv_cluster.core.config import CacheConfig
from pbkv_cluster.core.tokens import BLOCK_TOKENS
from pbkv_cluster.simulator.engine.cost_model import CostModel
from pbkv_cluster.simulator.engine.machines import machine
from pbkv_cluster.simulator.engine.result import SimulationResult
from pbkv_cluster.simulator.engine.simulation import Setup, simulate
from pbkv_cluster.simulator.traces.files import Trace, load_trace
from pbkv_cluster.simulator.workload.token_source import TokenSource
from pbkv_cluster.simulator.workload.workload import Mix, make_workload

MACHINE = "h100-14b"
WORKLOADS = ("sweagent", "autocoderover", "whowhen_magentic")
# Bytes a second from and to host memory, and the share of forecasts that are random.
SITUATIONS = ((5e9, 0.0), (25e9, 0.0), (5e9, 1.0))
WORKFLOWS, CONCURRENCY = 24, 24
SEED = 0
DISK_SITUATIONS = ((25e9, 0.0), (25e9, 1.0))  # with a disk
HOST_RATIO, DISK_HOST_RATIO, DISK_RATIO = 1.0, 0.25, 8.0  # over GPU blocks: host without and with a disk, disk
MEMORY = 0.3  # GPU blocks over those of the contexts of all open workflows
THINK_SCALE, TOOL_SHARE, ANNOUNCE_SIGMA = 4.0, 0.5, 0.5  # pauses of 8 s in the median, announced with a log-normal error
COPY_DELAY = 0.1  # copies have streams of their own
MODES: Mapping[str, Mapping[str, str | bool]] = {
    "none": {},
    "queue": {"prefetch": "queue"},
    "early demotion": {"demote_early": True},
    "queue and early demotion": {"prefetch": "queue", "demote_early": True},
    "stage": {"stage": True},
    "stage and queue": {"stage": True, "prefetch": "queue"},
}


@dataclass(frozen=True, slots=True)
class Outcome:
    """One run."""

    first_token_s: float
    workflow_s: float
    gpu_hits: float
    hits: float
    recomputed: int  # tokens
    used: float  # share of the prefetched blocks
    staged: int  # blocks
    staged_used: float  # share of these

    @classmethod
    def of(cls, result: SimulationResult) -> "Outcome":
        assert result.ttft is not None
        assert result.latency is not None
        ahead, staged = result.prefetched, result.staged
        return cls(
            result.ttft.mean,
            result.latency.mean,
            result.hit_gpu,
            result.hit_any,
            result.recomputed_tokens,
            ahead.used / max(1, ahead.loaded),
            staged.loaded,
            staged.used / max(1, staged.loaded),
        )


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of this benchmark."""
    parser.add_argument("--tool-seeds", default=str(SEED), metavar="A,B", help="of `tools`: of workloads and forecasts")
    parser.add_argument("--tool-modes", default=",".join(MODES), metavar="A,B", help="of `tools`: none first")
    parser.add_argument("--tool-workloads", default=",".join(WORKLOADS), metavar="NAMES", help="of `tools`: recorded workloads")
    parser.add_argument("--tool-machine", default=MACHINE, metavar="NAME", help="of `tools`: one of `pbkv simulate`")
    parser.add_argument(
        "--tool-disk", type=float, default=0.0, metavar="GBPS", help="of `tools`: with a disk, and less host memory"
    )


def run(arguments: argparse.Namespace) -> Report:
    """Runs every workload at every bandwidth in each way, prints each outcome, and returns the means."""
    workflows = 4 if arguments.quick else WORKFLOWS
    workloads = arguments.tool_workloads.split(",")[: 1 if arguments.quick else None]
    seeds = [int(seed) for seed in arguments.tool_seeds.split(",")][: 1 if arguments.quick else None]
    modes = {mode: MODES[mode] for mode in arguments.tool_modes.split(",")}
    gains: dict[tuple[float, str, str], list[tuple[float, float]]] = {}
    details: list[Figure] = []
    disk = arguments.tool_disk * 1e9
    situations = DISK_SITUATIONS if disk else SITUATIONS
    for workload, (bandwidth, noise), seed in product(workloads, situations[: 1 if arguments.quick else None], seeds):
        without: Outcome | None = None
        trace = load_trace(TRACES / f"{workload}.jsonl.gz")
        cost = replace(machine(arguments.tool_machine).cost(), host_bytes_per_s=bandwidth, copy_delay=COPY_DELAY)
        for mode, each in _outcomes(trace, workflows, cost, disk, noise, seed, modes):
            without = without or each
            over = without.first_token_s / each.first_token_s, without.workflow_s / each.workflow_s
            forecasts = "random" if noise else "made"
            gains.setdefault((bandwidth, forecasts, mode), []).append(over)
            where = f"{workload}, {bandwidth / 1e9:g} GB/s, forecasts {forecasts}, seed {seed}, {mode}"
            print(
                f"{where}: first token {each.first_token_s:.3f} s ({over[0]:.3f}x), workflow {each.workflow_s:.2f} s "
                f"({over[1]:.3f}x), GPU hits {each.gpu_hits:.1%}, hits {each.hits:.2%}, recomputed {each.recomputed:,}, "
                f"prefetched and used {each.used:.0%}, staged {each.staged:,}, used {each.staged_used:.0%}",
                flush=True,
            )
            details.append(Figure(f"{where}: first token", each.first_token_s, "s"))
            details.append(Figure(f"{where}: workflow", each.workflow_s, "s"))
            details.append(Figure(f"{where}: GPU hits", each.gpu_hits, ""))
            details.append(Figure(f"{where}: hits", each.hits, ""))
            details.append(Figure(f"{where}: recomputed", each.recomputed, "tokens"))
    return Report("tools", _sizes(workflows, workloads, seeds, arguments), tuple(_figures(gains)), tuple(details))


def _outcomes(
    trace: Trace,
    workflows: int,
    cost: CostModel,
    disk: float,
    noise: float,
    seed: int,
    modes: Mapping[str, Mapping[str, str | bool]],
) -> Iterator[tuple[str, Outcome]]:
    """The outcome of each mode on one workload. `disk` is its bandwidth in bytes a second; 0: there is none."""
    mix = Mix(workflows, CONCURRENCY, THINK_SCALE, announce_sigma=ANNOUNCE_SIGMA, tool_share=TOOL_SHARE)
    tokens = TokenSource(make_workload([trace], mix, seed))
    contexts = [sum({s.agent: s.prompt_tokens + s.output_tokens for s in each.steps}.values()) for each in trace.workflows]
    largest, _ = tokens.blocks()
    blocks = round(max(MEMORY * CONCURRENCY * sum(contexts) / len(contexts) / BLOCK_TOKENS, 1.3 * largest))
    setup = Setup(blocks, round(HOST_RATIO * blocks), "pbkv", noise=noise, seed=seed, cost=cost)
    if disk:
        setup = replace(
            setup,
            host_blocks=round(DISK_HOST_RATIO * blocks),
            disk_blocks=round(DISK_RATIO * blocks),
            cost=replace(cost, disk_bytes_per_s=disk),
        )
    for mode, fields in modes.items():
        cache = CacheConfig.model_validate({"policy": "pbkv", **fields})
        yield mode, Outcome.of(simulate(tokens, replace(setup, cache=cache)))


def _figures(gains: Mapping[tuple[float, str, str], list[tuple[float, float]]]) -> Iterator[Figure]:
    for (bandwidth, forecasts, mode), each in gains.items():
        if mode == "none":
            continue
        where = f"{bandwidth / 1e9:g} GB/s, {'random forecasts, ' * (forecasts == 'random')}`{mode}`"
        firsts, workflows = zip(*each, strict=True)
        yield Figure(f"{where}: first token, none's over its, mean", geometric_mean(firsts), "x")
        yield Figure(f"{where}: workflow, none's over its, mean", geometric_mean(workflows), "x")
        goal = 0.99 if forecasts == "random" else None
        yield Figure(f"{where}: workflow, none's over its, worst workload", min(workflows), "x", at_least=goal)


def _sizes(workflows: int, workloads: Sequence[str], seeds: Sequence[int], arguments: argparse.Namespace) -> str:
    disk = arguments.tool_disk
    slower = f"host {DISK_HOST_RATIO:g} and disk {DISK_RATIO:g} of it, {disk:g} GB/s" if disk else f"host {HOST_RATIO:g} of it"
    return (
        f"{', '.join(workloads)}: {workflows} workflows each, {CONCURRENCY} at a time, {arguments.tool_machine}, "
        f"seeds {list(seeds)}, "
        f"GPU with {MEMORY:g} of the open contexts, {slower}, "
        f"pauses announced with sigma {ANNOUNCE_SIGMA:g}; virtual time, cost model"
    )
