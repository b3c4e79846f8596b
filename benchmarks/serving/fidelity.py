"""How near the simulator is to a cluster: the same workflows, workers and sizes, in real processes and in virtual time.

The cost model is calibrated on this machine, right before. The cluster is one of this machine's processes, so its workers share
the cores with everything else; the simulator knows nothing of that, nor of the network.

The workflows are generated, or the first of a recorded trace, with shorter prompts and replies: a CPU would take hours for all.
"""

import argparse
import asyncio
import sys
import tempfile
from itertools import islice
from pathlib import Path
from typing import NamedTuple

from benchmarks.report import Figure, Report
from benchmarks.serving.cluster import started
from pbkv_cluster.client import AsyncClient
from pbkv_cluster.core.clock import SystemClock
from pbkv_cluster.core.config import Config, EngineConfig, ModelConfig
from pbkv_cluster.core.errors import PbkvError
from pbkv_cluster.core.usage import HitMeter, Tier
from pbkv_cluster.core.workflow.tool_call import ToolCall
from pbkv_cluster.simulator.engine.calibrate import calibrate
from pbkv_cluster.simulator.engine.cost_model import CostModel
from pbkv_cluster.simulator.engine.simulation import Setup, simulate
from pbkv_cluster.simulator.replay.replay import Replay, ReplayOptions
from pbkv_cluster.simulator.traces.files import read_trace
from pbkv_cluster.simulator.traces.step_traces import TraceWorkflow
from pbkv_cluster.simulator.workload.generator import Sizes, generate
from pbkv_cluster.simulator.workload.prompts import PromptBuilder
from pbkv_cluster.simulator.workload.token_source import TokenSource
from pbkv_cluster.simulator.workload.tools import UNNAMED
from pbkv_cluster.simulator.workload.workload import Arrival, Workload

__all__ = ["add_options", "run"]

_SIZES = Sizes(preamble=48, system=224, task=96, output=14, tool_result=112)
_CONCURRENCY, _TIME_SCALE = 12, 0.05
_GPU_BLOCKS, _HOST_BLOCKS = 640, 192  # of all workers together
_SCALE, _MAX_OUTPUT = 0.25, 16  # of a recorded trace: factor of all lengths, and tokens of a reply at most
_POINTS = 2.0  # that a tier's share of the prompt tokens may differ by


class Played(NamedTuple):
    """What both run."""

    what: str
    workflows: tuple[TraceWorkflow, ...]
    prompts: PromptBuilder


class Outcome(NamedTuple):
    """What a replay or a simulation measured."""

    meter: HitMeter
    ttft_s: float
    latency_s: float  # of a workflow, pauses included


def add_options(parser: argparse.ArgumentParser) -> None:
    """Adds the options of this benchmark."""
    group = parser.add_argument_group("fidelity", "option of that benchmark")
    group.add_argument("--fidelity-trace", type=Path, metavar="FILE", help="recorded workflows; by default generated ones")


def run(arguments: argparse.Namespace) -> Report:
    """Runs the workflows in real processes and in virtual time, and reports how the two differ."""
    quick: bool = arguments.quick
    count, policies, workers = (12, ("lru",), (2,)) if quick else (48, ("lru", "pbkv"), (1, 2))
    try:
        played = played_of(arguments.fidelity_trace, count)
    except PbkvError as error:
        sys.exit(f"benchmarks: --fidelity-trace: {error}")
    figures, details = list[Figure](), list[Figure]()
    cost = _calibrated()
    for number in workers:
        for policy in policies:
            config, what = _config(policy, number), f"{policy}, {number} worker{'s' * (number > 1)}"
            print(f"fidelity: {what}", file=sys.stderr, flush=True)
            real, simulated = asyncio.run(_replayed(config, played)), _simulated(config, played, cost)
            figures += compared(what, real, simulated)
            details += _details(what, real, "cluster")
            details += _details(what, simulated, "simulator")
    sizes = f"{played.what}, {_CONCURRENCY} at a time, small model"
    memory = f"{_GPU_BLOCKS} blocks on GPUs and {_HOST_BLOCKS} in host memory, divided by the workers"
    return Report("fidelity", f"{sizes}; {memory}", tuple(figures), tuple(details))


def played_of(trace: Path | None, count: int) -> Played:
    """The first workflows of a recorded trace, or generated ones.

    Raises:
        TraceError: the trace cannot be read.
    """
    if trace is None:
        return Played(f"{count} generated workflows", tuple(generate(count, 0, _SIZES, max_steps=24)), PromptBuilder())
    workflows = tuple(islice(read_trace(trace), count))
    what = f"{len(workflows)} workflows of {trace.name}, lengths x {_SCALE:g}, replies of at most {_MAX_OUTPUT} tokens"
    return Played(what, workflows, PromptBuilder(scale=_SCALE, max_output=_MAX_OUTPUT))


def _config(policy: str, workers: int) -> Config:
    return Config.model_validate(
        {
            "cluster": {"name": f"fidelity-{policy}-{workers}", "workers": workers},
            "engine": {
                "device": "cpu",
                "gpu_blocks": _GPU_BLOCKS // workers,
                "host_blocks": _HOST_BLOCKS // workers,
                "allow_forced_output": True,
            },
            "cache": {"policy": policy, "host_policy": policy},
            "gateway": {"port": 0, "http_port": -1},
        }
    )


def _calibrated() -> CostModel:
    """The cost model of the small model on one of this machine's cores."""
    import torch

    from pbkv_cluster.gpu_worker.model.loading import load_model
    from pbkv_cluster.gpu_worker.model.random_model import build
    from pbkv_cluster.gpu_worker.model.torch_runner import TorchRunner

    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        build(Path(folder))
        loaded = load_model(ModelConfig(path=folder), torch.device("cpu"))
    engine = EngineConfig(device="cpu", gpu_blocks=_GPU_BLOCKS, host_blocks=_HOST_BLOCKS)
    runner = TorchRunner(loaded, engine, torch.device("cpu"))
    runner.allocate()
    return calibrate(runner, loaded.shape.block_bytes, SystemClock(), (64, 256, 512, 1024), (1, 4))


async def _replayed(config: Config, played: Played) -> Outcome:
    with started(config) as cluster:
        async with AsyncClient(cluster.gateway) as client:
            options = ReplayOptions(_CONCURRENCY, _TIME_SCALE)
            report = await Replay(client, played.prompts, options).run(played.workflows)
    if report.failures or report.ttft is None or report.workflow_latency is None:
        raise RuntimeError(f"the replay failed: {'; '.join(map(str, report.failures))}")
    return Outcome(report.meter, report.ttft.mean, report.workflow_latency.mean)


def _simulated(config: Config, played: Played, cost: CostModel) -> Outcome:
    arrivals = tuple(arrival_of(workflow, _TIME_SCALE) for workflow in played.workflows)
    workload = Workload("fidelity", arrivals, _CONCURRENCY)
    setup = Setup(
        config.engine.gpu_blocks,
        config.engine.host_blocks,
        config.cache.policy,
        workers=config.cluster.workers,
        cost=cost,
        engine=config.engine,
        cache=config.cache,
        predictor=config.predictor,
    )
    result = simulate(TokenSource(workload, played.prompts), setup)
    assert result.ttft is not None
    assert result.latency is not None
    paused = result.time.tool_s / len(played.workflows)
    return Outcome(result.meter, result.ttft.mean, result.latency.mean + paused)


def arrival_of(workflow: TraceWorkflow, time_scale: float) -> Arrival:
    """The workflow with the pauses and tool calls of a replay whose pauses are scaled."""
    pauses = tuple(step.pause_s * time_scale for step in workflow.steps)
    calls = tuple(ToolCall(step.tool or UNNAMED) for step in workflow.steps[:-1])
    return Arrival(workflow.id, workflow, pauses, tool_calls=calls)


def compared(what: str, real: Outcome, simulated: Outcome) -> list[Figure]:
    """By how many points of the prompt tokens the tiers' deliveries differ, and how much faster virtual time is."""
    points = {tier: abs(_percent(simulated.meter, tier) - _percent(real.meter, tier)) for tier in (Tier.GPU, Tier.HOST, None)}
    return [
        Figure(f"{what}: delivered by the GPU, off by", points[Tier.GPU], "points", at_most=_POINTS),
        Figure(f"{what}: delivered by host memory, off by", points[Tier.HOST], "points", at_most=_POINTS),
        Figure(f"{what}: delivered by any tier, off by", points[None], "points", at_most=_POINTS),
        Figure(f"{what}: first token, simulated over real", simulated.ttft_s / real.ttft_s, "x"),
        Figure(f"{what}: workflow, simulated over real", simulated.latency_s / real.latency_s, "x"),
    ]


def _percent(meter: HitMeter, tier: Tier | None) -> float:
    return 100 * (meter.delivered_rate(tier) or 0.0)


def _details(what: str, outcome: Outcome, where: str) -> list[Figure]:
    meter = outcome.meter
    return [
        Figure(f"{what}, {where}: available", 100 * (meter.available_rate or 0.0), "%"),
        *(Figure(f"{what}, {where}: delivered, {tier}", _percent(meter, tier), "%") for tier in (Tier.GPU, Tier.HOST)),
        Figure(f"{what}, {where}: recomputed", meter.recomputed_tokens, "tokens"),
        Figure(f"{what}, {where}: first token", outcome.ttft_s, "s"),
        Figure(f"{what}, {where}: workflow", outcome.latency_s, "s"),
    ]
