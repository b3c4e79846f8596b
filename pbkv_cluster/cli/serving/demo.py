"""`pbkv demo`: compares two reuse policies on the same generated workflows, on this machine's CPU."""

from typing import Annotated, Any

import typer

from pbkv_cluster.cli.completion import complete_policies
from pbkv_cluster.cli.options import load_settings, split_names
from pbkv_cluster.cli.output import JsonTarget, check_json_target, result_console, write_json
from pbkv_cluster.core.errors import InvalidArgument

# Twelve open workflows use about 1,200 blocks together; the tiers of both workers have room for 832.
_CLUSTER: dict[str, Any] = {
    "cluster.address": "",
    "cluster.workers": 2,
    "model.path": "",
    "engine.device": "cpu",
    "engine.gpu_blocks": 320,
    "engine.host_blocks": 96,
    "engine.allow_forced_output": True,
    "gateway.port": 0,
}
_SIZES = {"preamble": 48, "system": 224, "task": 96, "output": 14, "tool_result": 112}
_MAX_STEPS = 24
TIME_SCALE = 0.05  # factor of the tools' durations


def demo(
    workflows: Annotated[int, typer.Option(min=1, help="Workflows to generate.")] = 48,
    concurrency: Annotated[int, typer.Option(min=1, help="Workflows that run at a time.")] = 12,
    seed: Annotated[int, typer.Option(help="Seed of the workflows.")] = 0,
    policies: Annotated[
        str,
        typer.Option(
            metavar="A,B",
            help="Reuse policies to compare; ratios are relative to the first.",
            autocompletion=complete_policies,
        ),
    ] = "lru,pbkv",
    json_target: JsonTarget = None,
) -> None:
    """Serve generated agent workflows under two reuse policies and compare hit rates and latencies.

    For each policy in turn, starts a cluster of two CPU workers with a small random model and too little cache for all
    workflows. Everything but the policy is the same. Takes about two minutes and needs no GPU.
    """
    names = split_names(policies)
    if not all(names) or len(set(names)) != len(names):
        raise InvalidArgument("--policies", f"must be different names with commas between them, got {policies!r}")
    check_json_target(json_target)

    from pbkv_cluster.cli.serving.replay_runner import replay_on_new_cluster, report_failures
    from pbkv_cluster.cli.serving.report_table import report_table
    from pbkv_cluster.simulator.replay.replay import ReplayOptions
    from pbkv_cluster.simulator.workload.generator import Sizes, generate
    from pbkv_cluster.simulator.workload.prompts import PromptBuilder

    traces = list(generate(workflows, seed, Sizes(**_SIZES), max_steps=_MAX_STEPS))
    options = ReplayOptions(concurrency, TIME_SCALE)
    console = result_console(json_target)
    settings = {name: load_settings(None, None, {**_CLUSTER, "cache.policy": name}) for name in names}
    reports = {
        name: replay_on_new_cluster(settings[name].config, traces, PromptBuilder(), options, name, console) for name in names
    }

    console.print(report_table(reports, title=f"{workflows} agent workflows, {concurrency} at a time, seed {seed}"))
    console.print("Times are those of a small random model on this machine's CPU; they say nothing about a GPU.")
    write_json({name: report.to_json() for name, report in reports.items()}, json_target)
    for report in reports.values():
        report_failures(report)
    if any(report.failures for report in reports.values()):
        raise typer.Exit(1)
