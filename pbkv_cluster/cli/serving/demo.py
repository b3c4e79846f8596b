"""`pbkv demo`: the same generated workflows under two reuse policies, side by side, on this machine's CPU."""

from typing import Annotated, Any

import typer

from pbkv_cluster.cli.options import load_settings
from pbkv_cluster.cli.output import JsonTarget, check_json_target, console_beside, write_json
from pbkv_cluster.core.errors import InvalidArgument

# Twelve open workflows own about 1,200 blocks between them; the tiers of both workers hold 832.
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
_TIME_SCALE = 0.05  # of the tools' seconds


def demo(
    workflows: Annotated[int, typer.Option(min=1, help="Workflows to generate.")] = 48,
    concurrency: Annotated[int, typer.Option(min=1, help="Workflows that run at a time.")] = 12,
    seed: Annotated[int, typer.Option(help="Seed of the workflows.")] = 0,
    policies: Annotated[
        str, typer.Option(metavar="A,B", help="Reuse policies to compare; ratios are to the first.")
    ] = "lru,pbkv",
    json_target: JsonTarget = None,
) -> None:
    """Serve generated agent workflows under two reuse policies and compare hit rates and latencies.

    Starts a cluster of two CPU workers with a small random model for each policy in turn, with too little cache for all.
    Everything but the policy is the same. Takes about two minutes and needs no GPU.
    """
    names = [name.strip() for name in policies.split(",")]
    if not all(names) or len(set(names)) != len(names):
        raise InvalidArgument("--policies", f"must be different names with commas between them, got {policies!r}")
    check_json_target(json_target)

    from pbkv_cluster.cli.serving.comparison import comparison
    from pbkv_cluster.cli.serving.driving import drive_own, report_failures
    from pbkv_cluster.simulator.replay.replay import ReplayOptions
    from pbkv_cluster.simulator.workload.generator import Sizes, generate
    from pbkv_cluster.simulator.workload.prompts import PromptBuilder

    traces = list(generate(workflows, seed, Sizes(**_SIZES), max_steps=_MAX_STEPS))
    options = ReplayOptions(concurrency, _TIME_SCALE)
    console = console_beside(json_target)
    settings = {name: load_settings(None, None, {**_CLUSTER, "cache.policy": name}) for name in names}
    reports = {name: drive_own(settings[name].config, traces, PromptBuilder(), options, name, console) for name in names}

    console.print(comparison(reports, title=f"{workflows} agent workflows, {concurrency} at a time, seed {seed}"))
    console.print("Times are those of a small random model on this machine's CPU; they say nothing about a GPU.")
    write_json({name: report.to_json() for name, report in reports.items()}, json_target)
    for report in reports.values():
        report_failures(report)
    if any(report.failures for report in reports.values()):
        raise typer.Exit(1)
