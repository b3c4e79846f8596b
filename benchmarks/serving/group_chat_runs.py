"""Runs the group chat under one contender, in real processes or in virtual time."""

import asyncio
import os
import shutil
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from benchmarks.serving.cluster import started
from benchmarks.serving.fidelity import arrival_of
from pbkv_cluster.client import AsyncClient
from pbkv_cluster.core.config import Config
from pbkv_cluster.gpu_worker.model.random_model import cached
from pbkv_cluster.simulator.engine.cost_model import CostModel
from pbkv_cluster.simulator.engine.simulation import Setup, simulate
from pbkv_cluster.simulator.evaluation.experiment import train_state
from pbkv_cluster.simulator.replay.replay import Replay, ReplayOptions
from pbkv_cluster.simulator.replay.report import ReplayReport
from pbkv_cluster.simulator.traces.files import Trace
from pbkv_cluster.simulator.traces.step_traces import TraceWorkflow
from pbkv_cluster.simulator.workload.prompts import PromptBuilder
from pbkv_cluster.simulator.workload.token_source import TokenSource
from pbkv_cluster.simulator.workload.workload import Workload

OPTIONS = ReplayOptions(concurrency=16, time_scale=0.05)
GPU_BLOCKS, WORKERS = 400, 2  # blocks of each worker
# Of one idle core: what prefills and decodes of the benchmark `engine` took on 2026-11-22.
_COSTS = {
    "5m": CostModel(1.3e-4, 8.1e-8, 6.0e-3, 3.0e-4, 2.0e-6, 4e9, 65_536),
    "24m": CostModel(6.0e-4, 3.85e-7, 1.1e-2, 1.1e-3, 4.7e-6, 4e9, 114_688),
}
MODELS = tuple(_COSTS)


class Outcome(NamedTuple):
    """What one run measured."""

    recomputed: float  # tokens
    ttft_s: float  # mean over the steps
    workflow_s: float  # mean, pauses included


class RealRuns:
    """Each run has a cluster of its own, of real processes on this machine."""

    def __init__(self, model: str, folder: Path) -> None:
        """Args:
        model: size of the random model.
        folder: an empty one, for what clusters have learnt.
        """
        self._model = model
        self._folder = folder
        self._present = folder / "run" / "predictor.state"
        self._taught: dict[str, Path] = {}  # files of contenders that were taught

    def teach(self, name: str, traces: Sequence[TraceWorkflow]) -> None:
        """Lets a cluster learn from some workflows; contender `name` starts from what it knows then."""
        path = self._folder / name / "predictor.state"
        self._replay(_config(name, 1.0, self._model, path), traces, f"teaching {name}")
        self._taught[name] = path

    def run(self, name: str, ratio: float, traces: Sequence[TraceWorkflow]) -> Outcome:
        """Runs some workflows under a contender.

        Args:
            name: of the contender.
            ratio: host blocks for each on the GPU.
            traces: the workflows.

        Raises:
            ValueError: a step failed.
            RuntimeError: the cluster cannot start.
        """
        shutil.rmtree(self._present.parent, ignore_errors=True)
        if name in self._taught:
            shutil.copytree(self._taught[name].parent, self._present.parent)
        return self._replay(_config(name, ratio, self._model, self._present), traces, name)

    def _replay(self, config: Config, traces: Sequence[TraceWorkflow], label: str) -> Outcome:
        print(f"groupchat: {label}", file=sys.stderr, flush=True)
        with started(config) as cluster:
            report = asyncio.run(_replayed(cluster.gateway, traces))
        if report.failures:
            raise ValueError(f"{label}: {'; '.join(map(str, report.failures))}")
        assert report.ttft is not None
        assert report.workflow_latency is not None
        return Outcome(report.recomputed_tokens, report.ttft.mean, report.workflow_latency.mean)


class VirtualRuns:
    """The same workers, sizes and router in virtual time, by a cost model of one idle core."""

    def __init__(self, model: str) -> None:
        """Args:
        model: size of the random model.
        """
        self._model = model
        self._taught: dict[str, Setup] = {}

    def teach(self, name: str, traces: Sequence[TraceWorkflow]) -> None:
        """Learns from some workflows; contender `name` starts from what is known then."""
        self._taught[name] = train_state(self._setup(name, 1.0), [Trace(name, tuple(traces))])

    def run(self, name: str, ratio: float, traces: Sequence[TraceWorkflow]) -> Outcome:
        """Runs some workflows under a contender.

        Args:
            name: of the contender.
            ratio: host blocks for each on the GPU.
            traces: the workflows.
        """
        setup = self._setup(name, ratio)
        if (taught := self._taught.get(name)) is not None:
            setup = replace(setup, predictor_state=taught.predictor_state, access=taught.access)
        arrivals = tuple(arrival_of(workflow, OPTIONS.time_scale) for workflow in traces)
        workload = Workload("group-chat", arrivals, OPTIONS.concurrency)
        result = simulate(TokenSource(workload, PromptBuilder()), setup)
        assert result.ttft is not None
        assert result.latency is not None
        pauses_s = result.time.tool_s / len(traces)
        return Outcome(result.recomputed_tokens, result.ttft.mean, result.latency.mean + pauses_s)

    def _setup(self, name: str, ratio: float) -> Setup:
        config = _config(name, ratio, self._model, Path())
        return Setup(
            config.engine.gpu_blocks,
            config.engine.host_blocks,
            config.cache.policy,
            workers=WORKERS,
            cost=_COSTS[self._model],
            engine=config.engine,
            cache=config.cache,
            predictor=config.predictor,
        )


async def _replayed(gateway: str, traces: Sequence[TraceWorkflow]) -> ReplayReport:
    async with AsyncClient(gateway) as client:
        return await Replay(client, PromptBuilder(), OPTIONS).run(traces)


def _config(contender: str, ratio: float, model: str, state: Path) -> Config:
    ours = contender != "lru"
    return Config.model_validate(
        {
            "cluster": {"name": f"group-chat-{os.getpid()}", "workers": WORKERS},
            "model": {"path": str(cached(model))},
            "engine": {
                "device": "cpu",
                "gpu_blocks": GPU_BLOCKS,
                "host_blocks": round(GPU_BLOCKS * ratio),
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
