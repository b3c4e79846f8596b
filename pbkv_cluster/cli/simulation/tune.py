"""`pbkv tune`: searches settings for recorded workflows and verifies them on tasks that the search has not seen."""

from contextlib import nullcontext
from pathlib import Path
from typing import Annotated

import typer

from pbkv_cluster.cli.completion import complete_policies
from pbkv_cluster.cli.options import Assignments, ConfigFile, load_settings, split_names
from pbkv_cluster.cli.simulation.cost_options import CostModelFile, MachineName, cost_of
from pbkv_cluster.cli.simulation.policy_options import check_policies, parse_pressures, warn_missed_pressures
from pbkv_cluster.cli.simulation.workload_options import ThinkScale, tell_assumed_pauses
from pbkv_cluster.cli.targets import OtherFiles, check_json_target, check_target, write_atomically, write_json
from pbkv_cluster.cli.terminal.output import result_console
from pbkv_cluster.core.errors import InvalidArgument
from pbkv_cluster.simulator.tuning.objective import Objective


def tune(
    files: Annotated[
        list[Path],
        typer.Argument(metavar="TRACE...", help="Your workflows: step traces or coding-agent sessions, .jsonl or .jsonl.gz."),
    ],
    out: Annotated[Path, typer.Option(metavar="FILE", help="Configuration to write, for `pbkv serve --config`.")] = Path(
        "tuned.yaml"
    ),
    json_target: Annotated[
        str | None,
        typer.Option("--json", metavar="FILE|-", help="Report of all runs; by default the name of --out, ending in .json."),
    ] = None,
    policies: Annotated[
        str | None,
        typer.Option(
            metavar="A,B",
            help="Policies to choose from; by default the configured one.",
            show_default=False,
            autocompletion=complete_policies,
        ),
    ] = None,
    objective: Annotated[
        Objective,
        typer.Option(help="What to improve over LRU: tokens that any tier delivers, or mean latency of a workflow."),
    ] = Objective.TOKENS,
    pressure: Annotated[
        str, typer.Option(metavar="P,Q", help="GPU capacities, as shares of an infinite cache's hits that LRU gets with them.")
    ] = ".45,.65",
    budget: Annotated[
        int,
        typer.Option(min=1, help="Runs of the search. A few more find capacities before it and test the winner after it."),
    ] = 40,
    hold_out: Annotated[float, typer.Option(help="Share of the tasks kept from the search to test its winner.")] = 0.3,
    train_share: Annotated[
        float, typer.Option(help="Share of the tasks that the predictor has learnt from before each run.")
    ] = 0.0,
    train: Annotated[
        list[Path] | None, typer.Option(metavar="TRACE", help="Other workflows that it has learnt from; may be repeated.")
    ] = None,
    concurrency: Annotated[int, typer.Option(min=1, help="Workflows that run at a time.")] = 32,
    host_ratio: Annotated[float, typer.Option(min=0, help="Blocks in host memory for each on the GPU; 0: none.")] = 2.0,
    think_scale: ThinkScale = None,
    workflows: Annotated[
        int | None,
        typer.Option(min=1, help="Workflows in each run; by default those of the trace. Beyond these, copies are run."),
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of the split, the candidates and the runs.")] = 0,
    cost_model: CostModelFile = None,
    machine: MachineName = None,
    config: ConfigFile = None,
    assignments: Assignments = None,
) -> None:
    """Search settings of the policy and the predictor on recorded workflows, in virtual time.

    Writes a configuration of the settings that differ from the defaults. The winner of the search is accepted only if it beats
    the present settings on held-out tasks as well; otherwise the present settings are written. Equal seeds give equal results.
    """
    cost = cost_of(cost_model, machine)
    read: OtherFiles = {"TRACE": files, "--train": train or ()}
    check_target(out, "--out", read)
    target = json_target or str(out.with_suffix(".json"))
    if Path(target) == out:
        raise InvalidArgument("--out", f"{out} is the name of the report: give that another with --json")
    check_json_target(target, {**read, "--out": [out]})

    from pbkv_cluster.cli.simulation.tuned_file import summary, tuned_file
    from pbkv_cluster.simulator.engine.simulation import Setup
    from pbkv_cluster.simulator.traces.files import load_trace
    from pbkv_cluster.simulator.tuning.plan import TuningPlan
    from pbkv_cluster.simulator.tuning.tuning import tune as search
    from pbkv_cluster.simulator.workload.workload import Mix

    settings = load_settings(config, assignments, {})
    plan = TuningPlan(
        policies=split_names(policies) if policies else (settings.config.cache.policy,),
        pressures=parse_pressures(pressure),
        budget=budget,
        objective=objective,
        hold_out=hold_out,
        train=train_share,
        seed=seed,
        host_ratio=host_ratio,
        mix=Mix(workflows, concurrency, think_scale),
    )
    check_policies(plan.policies)
    setup = Setup(gpu_blocks=0, cost=cost)
    traces = [load_trace(path) for path in files]
    training = [load_trace(path) for path in train or ()]
    tell_assumed_pauses([[trace] for trace in traces], think_scale)
    console = result_console(target)
    with console.status("finding capacities") if console.is_terminal else nullcontext() as status:

        def show(runs: int) -> None:
            if status is not None and runs:
                status.update(f"tuning: {min(runs, plan.budget)} of {plan.budget} runs" + ", testing" * (runs > plan.budget))

        found = search(traces, plan, settings.config, setup, training, show)
    warn_missed_pressures(
        (cell.workload, cell.pressure) for cell in (*found.cells, *found.held_out_cells) if not cell.on_target
    )
    write_atomically(tuned_file(found, settings), out, "--out")
    write_json(found.to_json(), target)
    for line in summary(found, settings.config):
        console.print(line, soft_wrap=True, highlight=False)
    console.print(f"Written: {out}" + f", {target}" * (target != "-"), soft_wrap=True, highlight=False)
