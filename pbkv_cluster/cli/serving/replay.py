"""`pbkv replay`: submits recorded workflows to a cluster and reports hit rates and latencies."""

from itertools import islice
from pathlib import Path
from typing import Annotated

import typer

from pbkv_cluster.cli.options import Assignments, ConfigFile, GpuBlocks, Model, Policy, Workers, connected, load_settings
from pbkv_cluster.cli.targets import JsonTarget, check_json_target, write_json
from pbkv_cluster.cli.terminal.output import result_console
from pbkv_cluster.core.errors import InvalidArgument


@connected
def replay(
    file: Annotated[
        Path,
        typer.Argument(
            metavar="FILE", help="Step trace, coding-agent sessions or chat requests: .jsonl or .jsonl.gz.", show_default=False
        ),
    ],
    workflows: Annotated[int | None, typer.Option(min=1, help="Replay only the first so many.", show_default=False)] = None,
    concurrency: Annotated[int, typer.Option(min=1, help="Workflows that run at a time.")] = 8,
    scale_tokens: Annotated[float, typer.Option(help="Factor of the length of every part of a prompt, in (0, 1].")] = 1.0,
    time_scale: Annotated[float, typer.Option(help="Factor of recorded pauses between steps; 0: no pauses.")] = 0.0,
    max_output: Annotated[int | None, typer.Option(min=1, help="Longest reply in tokens.", show_default=False)] = None,
    vocab_size: Annotated[int, typer.Option(help="Token ids are below this number; at most the model's vocabulary.")] = 1024,
    endpoint: Annotated[
        str | None,
        typer.Option(
            metavar="HOST:PORT",
            help="Gateway of a running cluster that allows forced output; by default a cluster is started.",
            show_default=False,
        ),
    ] = None,
    policy: Policy = None,
    workers: Workers = None,
    model: Model = None,
    gpu_blocks: GpuBlocks = None,
    config: ConfigFile = None,
    assignments: Assignments = None,
    json_target: JsonTarget = None,
) -> None:
    """Replay recorded agent workflows and report hit rates and latencies.

    Prompts are rebuilt as token ids and replies are forced, so every cache sees the same tokens. Exits with 1 if a step failed.
    """
    cluster_options: dict[str, object] = {
        "--policy": policy,
        "--workers": workers,
        "--model": model,
        "--gpu-blocks": gpu_blocks,
        "--config": config,
        "--set": assignments or None,
    }
    for flag, value in cluster_options.items():
        if endpoint is not None and value is not None:
            raise InvalidArgument(flag, f"sets up a cluster, but --endpoint {endpoint} names one that runs already")
    check_json_target(json_target, {"FILE": [file]})

    import secrets

    from pbkv_cluster.cli.serving.replay_runner import on_new_cluster, replay_at, report_failures
    from pbkv_cluster.cli.serving.report_table import report_table
    from pbkv_cluster.simulator.replay.replay import ReplayOptions
    from pbkv_cluster.simulator.traces.files import read_trace
    from pbkv_cluster.simulator.workload.prompts import PromptBuilder

    prompts = PromptBuilder(vocab_size, scale=scale_tokens, max_output=max_output)
    traces = list(islice(read_trace(file), workflows))
    console = result_console(json_target)
    if endpoint is not None:
        options = ReplayOptions(concurrency, time_scale, id_suffix=f"#{secrets.token_hex(4)}")
        report = replay_at(endpoint, traces, prompts, options, file.name, console)
        name = endpoint
    else:
        settings = load_settings(
            config,
            assignments,
            {
                "engine.allow_forced_output": True,
                "gateway.port": 0,
                "gateway.http_port": -1,
                "cache.policy": policy,
                "cluster.workers": workers,
                "model.path": model,
                "engine.gpu_blocks": gpu_blocks,
            },
        )
        options = ReplayOptions(concurrency, time_scale)
        name = settings.config.cache.policy
        report = on_new_cluster(
            settings.config,
            file.name,
            console,
            lambda endpoint: replay_at(endpoint, traces, prompts, options, file.name, console),
        )
    console.print(report_table({name: report}, title=file.name))
    write_json(report.to_json(), json_target)
    report_failures(report)
    if report.failures:
        raise typer.Exit(1)
