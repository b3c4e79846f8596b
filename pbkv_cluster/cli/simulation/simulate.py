"""`pbkv simulate`: compares reuse policies in virtual time."""

from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pbkv_cluster.cli.completion import complete_simulated_policies
from pbkv_cluster.cli.options import Assignments, ConfigFile, load_settings, split_names
from pbkv_cluster.cli.simulation.cost_options import CostModelFile, DiskLatency, DiskSpeed, MachineName, cost_of, with_disk
from pbkv_cluster.cli.simulation.policy_options import check_policies, parse_pressures, warn_missed_pressures
from pbkv_cluster.cli.simulation.workload_options import ThinkScale, tell_assumed_pauses
from pbkv_cluster.cli.targets import JsonTarget, OtherFiles, check_json_target, check_target, write_json
from pbkv_cluster.cli.terminal.output import result_console

if TYPE_CHECKING:
    from pbkv_cluster.simulator.evaluation.experiment import Row
    from pbkv_cluster.simulator.traces.files import Trace

_Traces = Annotated[
    list[Path],
    typer.Argument(metavar="TRACE...", help="Step traces, coding-agent sessions or chat requests: .jsonl or .jsonl.gz."),
]


def simulate(
    files: _Traces,
    train: Annotated[
        list[Path] | None, typer.Option(metavar="TRACE", help="Workflows that the predictor has learnt from; may be repeated.")
    ] = None,
    policies: Annotated[
        str,
        typer.Option(
            metavar="A,B",
            help="Policies of the GPU tier; `oracle` knows the future.",
            autocompletion=complete_simulated_policies,
        ),
    ] = "lru,pbkv,oracle",
    pressure: Annotated[
        str, typer.Option(metavar="P,Q", help="GPU capacities, as shares of an infinite cache's hits that LRU gets with them.")
    ] = ".25,.45,.65,.8",
    concurrency: Annotated[int, typer.Option(min=1, help="Workflows that run at a time.")] = 32,
    host_ratio: Annotated[float, typer.Option(min=0, help="Blocks in host memory for each on the GPU; 0: none.")] = 2.0,
    disk_ratio: Annotated[float, typer.Option(min=0, help="Blocks on a disk for each on the GPU; 0: none.")] = 0.0,
    disk_gbps: DiskSpeed = None,
    disk_latency_ms: DiskLatency = None,
    workers: Annotated[int, typer.Option(min=1, help="GPUs, each with its own memory; steps are routed as in service.")] = 1,
    think_scale: ThinkScale = None,
    seeds: Annotated[int, typer.Option(min=1, help="Number of runs, with seeds 0, 1 and so on.")] = 1,
    workflows: Annotated[
        int | None,
        typer.Option(min=1, help="Workflows in each run; by default those of the trace. Beyond these, copies are run."),
    ] = None,
    mix: Annotated[bool, typer.Option("--mix", help="Run all traces as one workload; by default one each.")] = False,
    drift: Annotated[
        bool, typer.Option("--drift", help="Half-way, the other traces replace the first. Implies --mix.")
    ] = False,
    announce: Annotated[
        float | None,
        typer.Option(
            min=0, max=10, metavar="SIGMA", help="Announce pauses as tool calls, their durations with a log-normal error."
        ),
    ] = None,
    tool_share: Annotated[
        float, typer.Option(min=0, max=1, help="Share of the variance of added pauses (of their logarithm) that is the tool's.")
    ] = 0.0,
    arrivals: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Start workflows at the times in this log, however many are running.")
    ] = None,
    noise: Annotated[float, typer.Option(min=0, max=1, help="Share of forecasts replaced by random ones.")] = 0.0,
    adversary: Annotated[
        bool,
        typer.Option(
            "--adversary",
            help="Negate the values of all policies except lru and oracle. Without the guard: --set cache.guard=false.",
        ),
    ] = False,
    cost_model: CostModelFile = None,
    machine: MachineName = None,
    config: ConfigFile = None,
    assignments: Assignments = None,
    json_target: JsonTarget = None,
    plot_target: Annotated[
        Path | None, typer.Option("--plot", metavar="FILE", help="Plot hit rates against capacities; needs matplotlib.")
    ] = None,
) -> None:
    """Compare reuse policies on recorded workflows, in virtual time.

    Scheduler, cache, policies and predictor are those of production; only the GPU is a cost model. Equal seeds give equal
    results.
    """
    cost = with_disk(cost_of(cost_model, machine), disk_ratio, disk_gbps, disk_latency_ms)
    read: OtherFiles = {"TRACE": files, "--train": train or (), "--arrivals": [arrivals]}
    if plot_target is not None:
        check_target(plot_target, "--plot", read)
    check_json_target(json_target, {**read, "--plot": [plot_target]})

    from pbkv_cluster.simulator.engine.simulation import Setup
    from pbkv_cluster.simulator.evaluation.experiment import Plan, compare, train_state
    from pbkv_cluster.simulator.evaluation.plot import plot, require_matplotlib
    from pbkv_cluster.simulator.traces.files import load_trace
    from pbkv_cluster.simulator.traces.serving_traces import read_arrivals
    from pbkv_cluster.simulator.workload.workload import Mix

    if plot_target is not None:
        require_matplotlib()
    plan = Plan(
        policies=split_names(policies),
        pressures=parse_pressures(pressure),
        seeds=seeds,
        host_ratio=host_ratio,
        disk_ratio=disk_ratio,
        mix=Mix(workflows, concurrency, think_scale, drift, announce, tool_share),
    )
    settings = load_settings(config, assignments, {}).config
    setup = Setup(
        gpu_blocks=0,
        workers=workers,
        adversary=adversary,
        noise=noise,
        cost=cost,
        engine=settings.engine,
        cache=settings.cache,
        predictor=settings.predictor,
    )
    check_policies(plan.policies)
    if train:
        setup = train_state(setup, [load_trace(path) for path in train])
    starts = None if arrivals is None else list(read_arrivals(arrivals))
    traces = [load_trace(path) for path in files]
    groups: list[list[Trace]] = [traces] if mix or drift else [[trace] for trace in traces]
    tell_assumed_pauses(groups, think_scale)
    console = result_console(json_target)
    rows: list[Row] = []
    runs = 0
    with console.status("simulating") if console.is_terminal else nullcontext() as status:

        def count_run() -> None:
            nonlocal runs
            runs += 1
            if status is not None:
                status.update(f"simulating: {runs} runs")

        for group in groups:
            rows.extend(compare(group, plan, setup, starts, count_run))
    from pbkv_cluster.cli.simulation.policy_tables import policy_tables

    for part in policy_tables(rows):
        console.print(part, highlight=False)
    warn_missed_pressures((row.workload, row.pressure) for row in rows if not row.on_target)
    write_json([row.to_json() for row in rows], json_target)
    if plot_target is not None:
        plot(rows, plot_target)
