"""A group chat of five agents on real processes: what a cold cluster recomputes, one with the prior, and ones that were taught.

The chat is generated: the order of its agents differs from workflow to workflow, each hears what the others have said, and some
wait for tools. Two workers have a small random model. For each host ratio and seed, a new cluster runs the same
workflows under each contender:

- `lru`: LRU on the GPU, `retired-lru` in host memory.
- `cold`: `pbkv` on both tiers, no prior, nothing learnt.
- `prior`: the same with the prior that ships, nothing learnt.
- `others`, `own`: the same with the prior, started from what a cluster has learnt from other applications, or from this chat
  with another seed.
"""

import argparse
import asyncio
import os
import shutil
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks.report import Figure, Report
from benchmarks.serving.cluster import started
from pbkv_cluster.client import AsyncClient
from pbkv_cluster.core.config import Config
from pbkv_cluster.core.errors import PbkvError
from pbkv_cluster.simulator.replay.replay import Replay, ReplayOptions
from pbkv_cluster.simulator.replay.report import ReplayReport
from pbkv_cluster.simulator.traces.step_traces import TraceWorkflow
from pbkv_cluster.simulator.workload.applications import APPLICATIONS, END, Agent, Application, Edge, Tool
from pbkv_cluster.simulator.workload.generator import Sizes, generate
from pbkv_cluster.simulator.workload.prompts import PromptBuilder

__all__ = ["add_options", "run"]

CONTENDERS = ("lru", "cold", "prior", "others", "own")
_SIZES = Sizes(preamble=48, system=160, task=96, output=16, tool_result=96)
_MAX_STEPS = 24
_OPTIONS = ReplayOptions(concurrency=16, time_scale=0.05)
_GPU_BLOCKS = 400  # of each of the two workers
_TEACHING_SEED = 1000
_SEARCH, _RUN, _ASK = Tool("search", 3.0, 1.2), Tool("run_code", 6.0), Tool("ask_user", 20.0, 0.5)

GROUP_CHAT = Application(
    "group-chat",
    "moderator",
    {
        "moderator": Agent(
            (Edge("engineer", 0.4), Edge("researcher", 0.35), Edge("critic", 0.15, retry=True), Edge("writer", 0.1)), output=0.6
        ),
        "engineer": Agent(
            (Edge("engineer", 0.3, retry=True, tool=_RUN), Edge("critic", 0.4, tool=_RUN), Edge("moderator", 0.3)), output=1.5
        ),
        "researcher": Agent(
            (Edge("researcher", 0.25, tool=_SEARCH), Edge("engineer", 0.35), Edge("moderator", 0.4, tool=_SEARCH))
        ),
        "critic": Agent((Edge("engineer", 0.4, retry=True), Edge("moderator", 0.3), Edge("writer", 0.3)), output=0.8),
        "writer": Agent((Edge("moderator", 0.3, retry=True, tool=_ASK), Edge("critic", 0.2), Edge(END, 0.5)), output=1.2),
    },
    group=True,
)


def add_options(parser: argparse.ArgumentParser) -> None:
    """Adds the options of this benchmark; it shares --seeds with `policies`."""
    group = parser.add_argument_group("groupchat", "options of that benchmark; it takes --seeds too")
    group.add_argument("--chat-ratios", default=".3,1", metavar="R,S", help="blocks in host memory for each on the GPUs")
    group.add_argument("--chat-workflows", type=int, default=40, metavar="N", help="workflows of a run; default 40")
    group.add_argument("--contenders", default=",".join(CONTENDERS), metavar="A,B", help="lru is always run; default all")


def run(arguments: argparse.Namespace) -> Report:
    """Teaches two clusters, runs all contenders and reports."""
    chosen = [name for name in CONTENDERS if name == "lru" or name in arguments.contenders.split(",")]
    if unknown := {*arguments.contenders.split(",")} - {*CONTENDERS}:
        sys.exit(f"benchmarks: --contenders: there is no {', '.join(sorted(unknown))}, only {', '.join(CONTENDERS)}")
    quick = arguments.quick
    workflows, taught_by = (24, 8) if quick else (arguments.chat_workflows, 80)
    seeds = range(1 if quick else arguments.seeds)
    try:
        ratios = [float(ratio) for ratio in arguments.chat_ratios.split(",")][: 1 if quick else None]
        with TemporaryDirectory() as folder:
            states = dict(_teach(chosen, taught_by, Path(folder)))
            figures = list(_compare(chosen, ratios, seeds, workflows, states, Path(folder)))
    except (PbkvError, RuntimeError, ValueError, OSError) as error:
        sys.exit(f"benchmarks: {error}")
    sizes = f"{workflows} workflows, {_OPTIONS.concurrency} at a time, {len(seeds)} seeds, 2 workers of {_GPU_BLOCKS} blocks"
    return Report("groupchat", f"{sizes}; taught by {taught_by} workflows; real processes", tuple(figures))


def _teach(chosen: Sequence[str], count: int, folder: Path) -> Iterator[tuple[str, Path]]:
    """Runs a cluster on workflows to learn from, and keeps what it has learnt. Yields the file of each contender."""
    for name, applications in (("others", APPLICATIONS), ("own", (GROUP_CHAT,))):
        if name in chosen:
            path = folder / name / "predictor.state"
            traces = list(generate(count, _TEACHING_SEED, _SIZES, applications, _MAX_STEPS))
            _replay(_config("prior", 1.0, path), traces, f"teaching {name}")
            yield name, path


def _compare(
    chosen: Sequence[str], ratios: Sequence[float], seeds: Sequence[int], workflows: int, states: dict[str, Path], folder: Path
) -> Iterator[Figure]:
    for ratio in ratios:
        recomputed, latency = Counter[str](), dict.fromkeys(chosen, 0.0)
        for seed in seeds:
            traces = list(generate(workflows, seed, _SIZES, (GROUP_CHAT,), _MAX_STEPS))
            mine = Counter[str]()
            for name in chosen:
                path = folder / "run" / "predictor.state"
                shutil.rmtree(path.parent, ignore_errors=True)
                if name in states:
                    shutil.copytree(states[name].parent, path.parent)
                report = _replay(_config(name, ratio, path), traces, f"{name}, host ratio {ratio:g}, seed {seed}")
                mine[name] = report.recomputed_tokens
                latency[name] += 0.0 if report.workflow_latency is None else report.workflow_latency.mean
            if not mine["lru"]:
                raise ValueError(f"host ratio {ratio:g}, seed {seed}: LRU recomputes nothing, so there is nothing to compare")
            recomputed.update(mine)
            for name in chosen[1:]:
                yield Figure(f"host ratio {ratio:g}, seed {seed}, {name}: recomputed over LRU's", mine[name] / mine["lru"], "x")
        yield Figure(f"host ratio {ratio:g}: LRU recomputes", recomputed["lru"], "tokens")
        for name in chosen[1:]:
            yield Figure(f"host ratio {ratio:g}, {name}: recomputed over LRU's", recomputed[name] / recomputed["lru"], "x")
            yield Figure(f"host ratio {ratio:g}, {name}: LRU's workflow latency over its", latency["lru"] / latency[name], "x")


def _config(contender: str, ratio: float, state: Path) -> Config:
    ours = contender != "lru"
    return Config.model_validate(
        {
            "cluster": {"name": f"group-chat-{os.getpid()}", "workers": 2},
            "engine": {
                "device": "cpu",
                "gpu_blocks": _GPU_BLOCKS,
                "host_blocks": round(_GPU_BLOCKS * ratio),
                "allow_forced_output": True,
            },
            "cache": {"policy": "pbkv" if ours else "lru", "host_policy": "pbkv" if ours else "retired-lru"},
            "predictor": {
                "prior": "off" if contender == "cold" else "default",
                "state_path": str(state) if ours else "",
            },
            "gateway": {"port": 0, "http_port": -1},
        }
    )


def _replay(config: Config, traces: Sequence[TraceWorkflow], label: str) -> ReplayReport:
    print(f"groupchat: {label}", file=sys.stderr, flush=True)

    async def replayed(gateway: str) -> ReplayReport:
        async with AsyncClient(gateway) as client:
            return await Replay(client, PromptBuilder(), _OPTIONS).run(traces)

    with started(config) as cluster:
        report = asyncio.run(replayed(cluster.gateway))
    if report.failures:
        raise ValueError(f"{label}: {'; '.join(map(str, report.failures))}")
    return report
