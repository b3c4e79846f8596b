"""Replays workflows on a cluster with a progress bar, for `pbkv replay` and `pbkv demo`."""

import asyncio
import os
import socket
from collections.abc import Awaitable, Callable, Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING

import typer

from pbkv_cluster.cli.terminal.plain_text import plain

if TYPE_CHECKING:
    from rich.console import Console

    from pbkv_cluster.client import AsyncClient
    from pbkv_cluster.core.config import Config
    from pbkv_cluster.simulator.replay.group_chat import Chat
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
    from pbkv_cluster.simulator.replay.replay import Replay

    def replay(client: "AsyncClient", on_step: "Callable[[], None]") -> "Awaitable[ReplayReport]":
        return Replay(client, prompts, options, on_step).run(workflows)

    return _with_progress(endpoint, label, console, sum(len(workflow.steps) for workflow in workflows), replay)


def play_chats(
    endpoint: str, count: int, first: int, concurrency: int, max_tokens: int, label: str, console: "Console"
) -> "tuple[ReplayReport, list[Chat]]":
    """Plays group chats of the newsroom, those with the numbers from `first` on. Returns the report, and what was said.

    Raises:
        Unavailable: nothing answers at `endpoint`.
    """
    from pbkv_cluster.simulator.replay.group_chat import GroupChats

    ended: list[Chat] = []

    async def play(client: "AsyncClient", on_step: "Callable[[], None]") -> "ReplayReport":
        chats = GroupChats(client, concurrency, max_tokens, on_step)
        report = await chats.run(count, first)
        ended.extend(chats.chats)
        return report

    return _with_progress(endpoint, label, console, None, play), ended


def _with_progress(
    endpoint: str,
    label: str,
    console: "Console",
    steps: int | None,
    run: "Callable[[AsyncClient, Callable[[], None]], Awaitable[ReplayReport]]",
) -> "ReplayReport":
    """Runs something that reports each step, with a bar; None: the number of steps is not known."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    from pbkv_cluster.client import AsyncClient

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("steps"), TimeElapsedColumn())
    with Progress(*columns, console=console) as progress:
        bar = progress.add_task(label, total=steps)

        async def connected() -> "ReplayReport":
            async with AsyncClient(endpoint) as client:
                await client.status()
                return await run(client, lambda: progress.advance(bar))

        return asyncio.run(connected())


def on_new_cluster(config: "Config", label: str, console: "Console", run: "Callable[[str], ReplayReport]") -> "ReplayReport":
    """Starts a cluster, calls `run` with its gateway's address, stops the cluster and returns what `run` did.

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
        return run(cluster.gateway_address)


def report_failures(report: "ReplayReport") -> None:
    """Prints the first failures on standard error."""
    for failure in report.failures[:_SHOWN_FAILURES]:
        typer.echo(f"pbkv: failed: {plain(str(failure))}", err=True)
    if len(report.failures) > _SHOWN_FAILURES:
        typer.echo(f"pbkv: and {len(report.failures) - _SHOWN_FAILURES} more failures", err=True)
