"""Replays workflows on a cluster with a progress bar, for `pbkv replay` and `pbkv demo`."""

import asyncio
import os
import socket
from collections.abc import Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from rich.console import Console

    from pbkv_cluster.core.config import Config
    from pbkv_cluster.simulator.replay.replay import ReplayOptions
    from pbkv_cluster.simulator.replay.report import ReplayReport
    from pbkv_cluster.simulator.traces.step_traces import TraceWorkflow
    from pbkv_cluster.simulator.workload.prompts import PromptBuilder

_SHOWN_FAILURES = 5


def replay_at(
    endpoint: str,
    workflows: "Sequence[TraceWorkflow]",
    prompts: "PromptBuilder",
    options: "ReplayOptions",
    label: str,
    console: "Console",
) -> "ReplayReport":
    """Replays `workflows` through the gateway at `endpoint` and returns the report. An interrupt ends the open workflows.

    Raises:
        Unavailable: nothing answers at `endpoint`.
    """
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    from pbkv_cluster.client import AsyncClient
    from pbkv_cluster.simulator.replay.replay import Replay

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("steps"), TimeElapsedColumn())
    with Progress(*columns, console=console) as progress:
        bar = progress.add_task(label, total=sum(len(workflow.steps) for workflow in workflows))

        async def run() -> "ReplayReport":
            async with AsyncClient(endpoint) as client:
                await client.status()
                return await Replay(client, prompts, options, on_step=lambda: progress.advance(bar)).run(workflows)

        return asyncio.run(run())


def replay_on_new_cluster(
    config: "Config",
    workflows: "Sequence[TraceWorkflow]",
    prompts: "PromptBuilder",
    options: "ReplayOptions",
    label: str,
    console: "Console",
) -> "ReplayReport":
    """Starts a cluster, replays `workflows` on it, stops it and returns the report.

    Raises:
        StartupError: the cluster cannot be started.
    """
    from pbkv_cluster.cluster.local import LocalCluster

    # A name of its own separates it from other clusters in the same Redis.
    renamed = config.cluster.model_copy(update={"name": f"{config.cluster.name}-{socket.gethostname()}-{os.getpid()}"})
    config = config.model_copy(update={"cluster": renamed})
    with ExitStack() as stack:
        with console.status(f"{label}: starting the cluster"):
            cluster = stack.enter_context(LocalCluster(config))
        return replay_at(cluster.gateway_address, workflows, prompts, options, label, console)


def report_failures(report: "ReplayReport") -> None:
    """Prints the first failures on standard error."""
    for failure in report.failures[:_SHOWN_FAILURES]:
        typer.echo(f"pbkv: failed: {failure}", err=True)
    if len(report.failures) > _SHOWN_FAILURES:
        typer.echo(f"pbkv: and {len(report.failures) - _SHOWN_FAILURES} more failures", err=True)
