"""`pbkv predictor eval`: how well each expert and their mixture forecast recorded workflows."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pbkv_cluster.cli.completion import complete_expert
from pbkv_cluster.cli.options import Assignments, ConfigFile, load_settings
from pbkv_cluster.cli.targets import JsonTarget, check_json_target, write_json
from pbkv_cluster.cli.terminal.output import result_console
from pbkv_cluster.core.errors import InvalidArgument

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from pbkv_cluster.core.config import PredictorConfig
    from pbkv_cluster.simulator.prediction.trial import Events, Row
    from pbkv_cluster.simulator.traces.step_traces import TraceWorkflow


def evaluate(
    test: Annotated[
        list[Path], typer.Option(metavar="TRACE", help="Workflows to forecast, .jsonl or .jsonl.gz; may be repeated.")
    ],
    train: Annotated[
        list[Path] | None,
        typer.Option(metavar="TRACE", help="Workflows to learn from first; may be repeated. By default none."),
    ] = None,
    split: Annotated[
        float | None,
        typer.Option(
            metavar="SHARE",
            help="Learn from this share of the tasks of --test and forecast the others.",
            show_default=False,
        ),
    ] = None,
    online: Annotated[
        bool,
        typer.Option("--online", help="Keep learning from what is forecast, as in service. Implied without training."),
    ] = False,
    expert: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="Expert to evaluate; may be repeated. By default those of predictor.experts.",
            autocompletion=complete_expert,
        ),
    ] = None,
    no_text: Annotated[
        bool,
        typer.Option("--no-text", help="Leave out words, pieces and lengths of texts: forecast from agents alone."),
    ] = False,
    config: ConfigFile = None,
    assignments: Assignments = None,
    json_target: JsonTarget = None,
) -> None:
    """Evaluate how well the next agents are forecast: by each expert alone, and by their mixture.

    Forecasts are made when a step starts (before its output is known) and when it ends (after), for each of the next
    predictor.horizon steps; the end of a workflow counts as an agent.
    """
    check_json_target(json_target, {"--test": test, "--train": train or ()})
    if split is not None and train:
        raise InvalidArgument("--split", "takes training from --test; leave --train out")
    if split is not None and not 0 < split < 1:
        raise InvalidArgument("--split", f"must be above 0 and below 1, got {split:g}")

    from pbkv_cluster.simulator.prediction.trial import contenders

    predictor = load_settings(config, assignments, {}).config.predictor
    chosen = contenders(predictor, expert or ())
    training, tested = _workflows(train or [], test, split)
    console = result_console(json_target)
    rows = _run(chosen, training, tested, online or not training, no_text, console)
    learnt = f"after {len(training):,} workflows" if training else "from nothing"
    console.print(
        f"{len(tested):,} workflows forecast, {learnt}, {'learning on' if online or not training else 'without learning on'}"
        f"{', from agents alone' if no_text else ''}. "
        "Percent of forecasts in which the agent k steps ahead was the likeliest, before a step's output is known and after; "
        "for the next step also percent among the three likeliest, log loss in nats, and expected calibration error.",
        soft_wrap=True,
    )
    silent = [name for name in chosen if not any(row.expert == name for row in rows)]
    if silent:
        console.print(f"Left out, because it made no forecast: {', '.join(silent)}.", soft_wrap=True)
    for table in _tables(rows):
        console.print(table)
    write_json([row.to_json() for row in rows], json_target)


def _workflows(train: list[Path], test: list[Path], split: float | None) -> "tuple[list[TraceWorkflow], list[TraceWorkflow]]":
    """The workflows to learn from, and those to forecast."""
    from pbkv_cluster.simulator.traces.files import load_trace
    from pbkv_cluster.simulator.traces.split import part_of

    training = [workflow for path in train for workflow in load_trace(path).workflows]
    tested = [workflow for path in test for workflow in load_trace(path).workflows]
    if split is not None:
        shares = {"train": split, "test": 1 - split}
        parts = [part_of(workflow.group, shares, "prediction") for workflow in tested]
        training = [workflow for workflow, part in zip(tested, parts, strict=True) if part == "train"]
        tested = [workflow for workflow, part in zip(tested, parts, strict=True) if part == "test"]
        if not training or not tested:
            raise InvalidArgument("--split", "leaves one part without any task; give more workflows, or another share")
    if not tested:
        raise InvalidArgument("--test", "there are no workflows to forecast")
    return training, tested


def _run(
    chosen: "dict[str, PredictorConfig]",
    training: "list[TraceWorkflow]",
    tested: "list[TraceWorkflow]",
    online: bool,
    no_text: bool,
    console: "Console",
) -> "list[Row]":
    from rich.progress import Progress

    from pbkv_cluster.predictor_service.predictor import PREDICTORS
    from pbkv_cluster.simulator.prediction.training import train_predictor
    from pbkv_cluster.simulator.prediction.trial import recorded_events, rows_of
    from pbkv_cluster.simulator.workload.events import without_text

    def events_of(workflows: "list[TraceWorkflow]", prefix: str) -> "list[Events]":
        recorded = recorded_events(workflows, prefix)
        return [list(without_text(events)) for events in recorded] if no_text else recorded

    with Progress(console=console, disable=not console.is_terminal, transient=True) as progress:
        task = progress.add_task("reading prompts", total=None)
        training_events, test_events = events_of(training, "train"), events_of(tested, "test")
        progress.update(task, total=len(chosen) * (len(training_events) + len(test_events)))
        rows = []
        for name, config in chosen.items():
            progress.update(task, description=name)
            predictor = PREDICTORS.get(config.model)(config)
            for events in training_events:
                train_predictor(predictor, [events])
                progress.advance(task)
            rows += rows_of(name, predictor, test_events, online, lambda: progress.advance(task), leave_out_silent=True)
    return rows


def _tables(rows: "list[Row]") -> "Iterator[Table]":
    """One table per workload, and one of their means."""
    workloads = list(dict.fromkeys(row.workload for row in rows))
    for workload in workloads:
        yield _table(workload or "unnamed workload", [row for row in rows if row.workload == workload])
    if len(workloads) > 1:
        yield _table(f"mean of {len(workloads)} workloads", rows)


def _table(title: str, rows: "list[Row]") -> "Table":
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    from pbkv_cluster.simulator.prediction.trial import mean

    table = Table(title=Text(title), box=SIMPLE_HEAD, header_style="bold")
    table.add_column("expert", no_wrap=True)
    table.add_column("output")
    horizon = max(row.k for row in rows)
    for heading in (*(f"k={k}" for k in range(1, horizon + 1)), "top 3", "log loss", "ECE", "per s"):
        table.add_column(heading, justify="right")
    for expert in dict.fromkeys(row.expert for row in rows):
        for when in ("before", "after"):
            shares = [f"{100 * mean(rows, 'top1', expert, when, k):.1f}" for k in range(1, horizon + 1)]
            top3, loss, error = (mean(rows, column, expert, when, 1) for column in ("top3", "log_loss", "calibration_error"))
            speed = mean(rows, "forecasts_per_s", expert, when, 1)
            table.add_row(
                Text("" if when == "after" else expert),
                *(when, *shares, f"{100 * top3:.1f}", f"{loss:.3f}", f"{error:.3f}", f"{speed:,.0f}"),
            )
    return table
