"""`pbkv report`: whether a cache pays for a user's own workflows."""

import os
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pbkv_cluster.cli.options import Assignments, ConfigFile, load_settings
from pbkv_cluster.cli.simulation.cost_options import CostModelFile, MachineName, cost_of
from pbkv_cluster.cli.simulation.workload_options import ThinkScale
from pbkv_cluster.cli.targets import JsonTarget, check_json_target, check_target, write_atomically, write_json
from pbkv_cluster.cli.terminal.output import figures_table, result_console
from pbkv_cluster.core.errors import InvalidArgument

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from pbkv_cluster.simulator.report.assessment import Assessment

_MACHINE = "h100-14b"
_JOBS_MAX = 2


def report(
    file: Annotated[
        Path, typer.Argument(metavar="TRACE", help="Your workflows, as `pbkv record` or `pbkv trace convert` writes them.")
    ],
    html: Annotated[Path | None, typer.Option("--html", metavar="FILE", help="Write the report as one HTML file.")] = None,
    json_target: JsonTarget = None,
    workflows: Annotated[
        int, typer.Option(min=1, help="Most workflows to run. Long ones are fewer: a minute's worth is taken.")
    ] = 96,
    concurrency: Annotated[
        int | None,
        typer.Option(min=1, help="Workflows that run at a time; by default as the trace logs, or else 32.", show_default=False),
    ] = None,
    think_scale: ThinkScale = None,
    gpu: Annotated[
        str, typer.Option(metavar="S,T", help="GPU memory to try, over what the contexts of open workflows take.")
    ] = ".3,.6,1",
    host: Annotated[str, typer.Option(metavar="R,S", help="Host memory to try, over GPU memory; 0: none.")] = "0,1",
    jobs: Annotated[
        int | None, typer.Option(min=1, help="Processes that simulate; by default two, if there are as many cores.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of the sample and of pauses.")] = 0,
    cost_model: CostModelFile = None,
    machine: MachineName = None,
    config: ConfigFile = None,
    assignments: Assignments = None,
) -> None:
    """Say what a KV cache would save for your workflows: at all, with which memory, by which policy, in tokens and seconds.

    Everything runs in virtual time, by a cost model of a GPU and a model (--machine, by default h100-14b).
    """
    name = None if machine == "list" else machine or (None if cost_model else _MACHINE)
    cost = cost_of(cost_model, machine if machine == "list" else name)
    check_json_target(json_target, {"TRACE": [file], "--html": [html]})
    if html is not None:
        check_target(html, "--html", {"TRACE": [file]})

    from pbkv_cluster.simulator.engine.machines import machine as machine_of
    from pbkv_cluster.simulator.engine.simulation import Setup
    from pbkv_cluster.simulator.report.assessment import ReportOptions, assess
    from pbkv_cluster.simulator.report.page import page
    from pbkv_cluster.simulator.traces.files import load_trace

    options = ReportOptions(
        shares=_numbers("--gpu", gpu, above_zero=True),
        host_ratios=_numbers("--host", host, above_zero=False),
        most_workflows=workflows,
        concurrency=concurrency,
        think_scale=think_scale,
        jobs=jobs or min(_JOBS_MAX, os.cpu_count() or 1),
        seed=seed,
    )
    settings = load_settings(config, assignments, {}).config
    setup = Setup(gpu_blocks=0, cost=cost, engine=settings.engine, cache=settings.cache, predictor=settings.predictor)
    trace = load_trace(file)
    console = result_console(json_target)
    with console.status("reading") if console.is_terminal else nullcontext() as status:

        def show(done: int, of: int) -> None:
            if status is not None:
                status.update(f"simulating: {done} of {of} parts")

        described = name or str(cost_model)
        found = assess(trace, setup, described, machine_of(name).gpu_blocks if name else None, options, show)
    if html is not None:  # files first: a minute of work is not lost where the terminal cannot be written
        write_atomically(page(found), html, "--html")
    write_json(found.to_json(), json_target)
    _print(console, found)


def _numbers(option: str, text: str, *, above_zero: bool) -> tuple[float, ...]:
    try:
        values = tuple(float(part) for part in text.split(","))
    except ValueError:
        raise InvalidArgument(option, f"must be numbers with commas between them, got {text!r}") from None
    for value in values:
        if not 0 <= value <= 1000 or (above_zero and not value):
            raise InvalidArgument(option, f"must be {'above' if above_zero else 'at least'} 0 and at most 1000, got {value:g}")
    return values


def _print(console: "Console", found: "Assessment") -> None:
    from rich.text import Text

    from pbkv_cluster.simulator.report.page import notes, potential_text, subtitle

    console.print(Text.assemble((found.name, "bold"), f": {subtitle(found)}"))
    console.print()
    for text in found.findings.reasons:
        console.print(text, highlight=False)
    console.print()
    console.print(potential_text(found), highlight=False)
    console.print(_sizes_table(found))
    console.print(_agents_table(found))
    for text in notes(found):
        console.print(text, style="dim", highlight=False)


def _sizes_table(found: "Assessment") -> "Table":
    from pbkv_cluster.simulator.report.page import size_name

    table = figures_table(
        ("memory",),
        ("GB", "LRU", "pbkv", "clairvoyant", "1st token", "workflow"),
        "Recomputed tokens, and LRU's mean seconds over pbkv's. Memory: the GPU's in percent of the open contexts",
    )
    for each in found.comparisons:
        table.add_row(
            size_name(found, each),
            f"{found.gigabytes(each.size.gpu_blocks):.1f} + {found.gigabytes(each.size.host_blocks):.1f}",
            *(f"{outcome.recomputed_tokens:,}" for outcome in (each.lru, each.pbkv, each.clairvoyant)),
            f"{each.ttft:.2f}",
            f"{each.latency:.2f}",
        )
    return table


def _agents_table(found: "Assessment") -> "Table":
    from pbkv_cluster.simulator.report.page import agent_rows, size_name

    table = figures_table(
        ("workload", "agent"),
        ("steps", "prompt", "own", "others", "LRU", "pbkv", "clairvoyant"),
        f"Reusable from the own and from other workflows; tokens recomputed with {size_name(found, found.focus)}",
    )
    for row in agent_rows(found):
        table.add_row(*row)
    return table
