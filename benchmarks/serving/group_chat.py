"""A group chat of five agents on real processes: what a cold cluster recomputes, one with the prior, and ones that were taught.

The chat is generated: the order of its agents differs from workflow to workflow, each hears what the others have said, and some
wait for tools. Two workers have a small random model. For each host ratio and seed, a new cluster runs the same
workflows under each contender:

- `lru`: LRU on the GPU, `retired-lru` in host memory.
- `cold`: `pbkv` on both tiers, no prior, nothing learnt.
- `prior`: the same with the prior that ships, nothing learnt.
- `others`, `own`: the same with the prior, started from what a cluster has learnt from other applications, or from this chat
  with another seed.

Runs of one seed follow each other, so that they see about the same load. With `--chat-model 24m`, computing prompts takes most
of the time, and the seconds of first token and workflow count as well.
"""

import argparse
import asyncio
import os
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

from benchmarks.report import Figure, Report
from benchmarks.serving.cluster import started
from pbkv_cluster.client import AsyncClient
from pbkv_cluster.core.config import Config
from pbkv_cluster.core.errors import PbkvError
from pbkv_cluster.gpu_worker.model.random_model import cached
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
_MODELS = ("5m", "24m")
_AT_MOST = {"prior": 0.85, "own": 0.7}  # recomputed over LRU's, all seeds together
_ANY_SEED = 1.03  # likewise, at most, on each
_WORKFLOW, _FIRST_TOKEN = 1.05, 1.2  # LRU's seconds over those with the prior, at least, with the larger model
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
    group.add_argument("--chat-model", choices=_MODELS, default=_MODELS[0], help="parameters of the random model; default 5m")
    group.add_argument("--contenders", default=",".join(CONTENDERS), metavar="A,B", help="lru is always run; default all")


def run(arguments: argparse.Namespace) -> Report:
    """Teaches two clusters, runs all contenders and reports."""
    chosen = [name for name in CONTENDERS if name == "lru" or name in arguments.contenders.split(",")]
    if unknown := {*arguments.contenders.split(",")} - {*CONTENDERS}:
        sys.exit(f"benchmarks: --contenders: there is no {', '.join(sorted(unknown))}, only {', '.join(CONTENDERS)}")
    quick = arguments.quick
    workflows, taught_by = (24, 8) if quick else (arguments.chat_workflows, 80)
    seeds = range(1 if quick else arguments.seeds)
    figures, details = list[Figure](), list[Figure]()
    try:
        ratios = [float(ratio) for ratio in arguments.chat_ratios.split(",")][: 1 if quick else None]
        with TemporaryDirectory() as folder:
            states = dict(_teach(chosen, taught_by, Path(folder), arguments.chat_model))
            for ratio in ratios:
                runs = _Runs(ratio, arguments.chat_model, states, Path(folder) / "run" / "predictor.state")
                for seed in seeds:
                    details += runs.run(chosen, seed, list(generate(workflows, seed, _SIZES, (GROUP_CHAT,), _MAX_STEPS)))
                figures += runs.figures()
    except (PbkvError, RuntimeError, ValueError, OSError) as error:
        sys.exit(f"benchmarks: {error}")
    sizes = f"{workflows} workflows, {_OPTIONS.concurrency} at a time, {len(seeds)} seeds, 2 workers of {_GPU_BLOCKS} blocks"
    how = f"random model of {arguments.chat_model}, taught by {taught_by} workflows; real processes"
    return Report("groupchat", f"{sizes}; {how}", tuple(figures), tuple(details))


def _teach(chosen: Sequence[str], count: int, folder: Path, model: str) -> Iterator[tuple[str, Path]]:
    """Runs a cluster on workflows to learn from, and keeps what it has learnt. Yields the file of each contender."""
    for name, applications in (("others", APPLICATIONS), ("own", (GROUP_CHAT,))):
        if name in chosen:
            path = folder / name / "predictor.state"
            traces = list(generate(count, _TEACHING_SEED, _SIZES, applications, _MAX_STEPS))
            _replay(_config("prior", 1.0, model, path), traces, f"teaching {name}")
            yield name, path


class _Outcome(NamedTuple):
    """What one run measured."""

    recomputed: float  # tokens
    ttft_s: float  # mean over the steps
    workflow_s: float  # mean, pauses included


class _Runs:
    """Runs of all contenders at one host ratio."""

    def __init__(self, ratio: float, model: str, states: Mapping[str, Path], state: Path) -> None:
        """Args:
        ratio: host blocks for each on the GPU.
        model: size of the random model.
        states: the files that taught contenders start from.
        state: the file that a run starts from; it is overwritten.
        """
        self._ratio = ratio
        self._model = model
        self._states = states
        self._state = state
        self._outcomes: dict[str, dict[int, _Outcome]] = {}  # by contender and seed

    def run(self, chosen: Sequence[str], seed: int, traces: Sequence[TraceWorkflow]) -> Iterator[Figure]:
        """Runs the contenders, `lru` first, with one seed. Yields what each has measured.

        Raises:
            ValueError: LRU recomputes nothing, or a step failed.
        """
        for name in chosen:
            shutil.rmtree(self._state.parent, ignore_errors=True)
            if name in self._states:
                shutil.copytree(self._states[name].parent, self._state.parent)
            label = f"{name}, host ratio {self._ratio:g}, seed {seed}"
            report = _replay(_config(name, self._ratio, self._model, self._state), traces, label)
            assert report.ttft is not None
            assert report.workflow_latency is not None
            outcome = _Outcome(report.recomputed_tokens, report.ttft.mean, report.workflow_latency.mean)
            if name == "lru" and not outcome.recomputed:
                raise ValueError(f"{label}: LRU recomputes nothing, so there is nothing to compare")
            self._outcomes.setdefault(name, {})[seed] = outcome
            print(f"groupchat: {label}: {outcome}", file=sys.stderr, flush=True)
            yield Figure(f"{label}: recomputed", outcome.recomputed, "tokens")
            yield Figure(f"{label}: delivered", 100 * (report.meter.delivered_rate() or 0.0), "%")
            yield Figure(f"{label}: first token, mean", outcome.ttft_s, "s")
            yield Figure(f"{label}: workflow, mean", outcome.workflow_s, "s")

    def figures(self) -> Iterator[Figure]:
        """Each contender over LRU: all seeds together, and the worst."""
        where = f"host ratio {self._ratio:g}"
        lru = self._outcomes["lru"]
        yield Figure(f"{where}: LRU recomputes", sum(run.recomputed for run in lru.values()), "tokens")
        larger = self._model != _MODELS[0]
        for name, runs in self._outcomes.items():
            if name == "lru":
                continue
            pooled = _Outcome(*(sum(part) / sum(base) for part, base in zip(_columns(runs), _columns(lru), strict=True)))
            worst = max(run.recomputed / lru[seed].recomputed for seed, run in runs.items())
            goal = _AT_MOST.get(name)
            yield Figure(f"{where}, {name}: recomputed over LRU's", pooled.recomputed, "x", at_most=goal)
            yield Figure(f"{where}, {name}: recomputed over LRU's, worst seed", worst, "x", at_most=_ANY_SEED)
            seconds = larger and name == "prior"
            goals = (_WORKFLOW, _FIRST_TOKEN) if seconds else (None, None)
            yield Figure(f"{where}, {name}: LRU's workflow over its", 1 / pooled.workflow_s, "x", at_least=goals[0])
            yield Figure(f"{where}, {name}: LRU's first token over its", 1 / pooled.ttft_s, "x", at_least=goals[1])
        if "cold" in self._outcomes and "others" in self._outcomes:
            cold, others = (sum(run.recomputed for run in self._outcomes[name].values()) for name in ("cold", "others"))
            yield Figure(f"{where}: recomputed after other workloads over from nothing", others / cold, "x", at_most=1.0)


def _columns(runs: Mapping[int, _Outcome]) -> Iterator[tuple[float, ...]]:
    return zip(*runs.values(), strict=True)


def _config(contender: str, ratio: float, model: str, state: Path) -> Config:
    ours = contender != "lru"
    return Config.model_validate(
        {
            "cluster": {"name": f"group-chat-{os.getpid()}", "workers": 2},
            "model": {"path": str(cached(model))},
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
            "gateway": {"port": 0},
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
