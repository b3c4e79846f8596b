"""`pbkv train`: trains a predictor on recorded workflows; a cluster can start from the result."""

import time
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pbkv_cluster.cli.options import Assignments, ConfigFile, load_settings
from pbkv_cluster.cli.targets import JsonTarget, check_json_target, write_json
from pbkv_cluster.cli.terminal.output import percent, result_console
from pbkv_cluster.core.errors import InvalidArgument

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from pbkv_cluster.core.config import PredictorConfig
    from pbkv_cluster.simulator.prediction.trial import Row
    from pbkv_cluster.simulator.traces.step_traces import TraceWorkflow

_NAME = "predictor.state"
_FRESH, _TRAINED = "untrained", "trained"


def train(
    files: Annotated[
        list[Path],
        typer.Argument(metavar="TRACE...", help="Your workflows: step traces or coding-agent sessions, .jsonl or .jsonl.gz."),
    ],
    out: Annotated[Path, typer.Option(metavar="DIR", help="Folder for the state; created if it is missing.")],
    hold_back: Annotated[
        float,
        typer.Option(
            metavar="SHARE", help="Share of the tasks that is first left out, to evaluate forecasts on them; 0: no evaluation."
        ),
    ] = 0.2,
    force: Annotated[bool, typer.Option("--force", help="Replace an existing state.")] = False,
    config: ConfigFile = None,
    assignments: Assignments = None,
    json_target: JsonTarget = None,
) -> None:
    """Train the predictor and policy pbkv on recorded workflows, one after the other.

    Writes the state that a predictor service would have after all these workflows, for predictor.state_path. First, it reports
    how well held-back tasks are forecast by a predictor trained on the others, and by an untrained one.
    """
    from pbkv_cluster.predictor_service.state.file import access_path
    from pbkv_cluster.simulator.traces.files import load_trace

    if not 0 <= hold_back < 1:
        raise InvalidArgument("--hold-back", f"must be at least 0 and below 1, got {hold_back:g}")
    check_json_target(json_target, {"TRACE": files})
    target = out / _NAME
    _check(out, (target, access_path(target)), force)
    predictor = load_settings(config, assignments, {}).config.predictor
    workflows = [workflow for path in files for workflow in load_trace(path).workflows]
    if not workflows:
        raise InvalidArgument("TRACE", "there are no workflows to learn from")
    console = result_console(json_target)
    if hold_back:
        _report(predictor, workflows, hold_back, console)
    began = time.perf_counter()
    step_contexts, block_contexts = _train(predictor, workflows, target, console)
    steps = sum(len(workflow.steps) for workflow in workflows)
    spent_s = time.perf_counter() - began
    console.print(
        f"Learnt from {len(workflows):,} workflows, {steps:,} steps, in {spent_s:.1f} s: "
        f"{step_contexts:,} contexts of the next step, {block_contexts:,} of the use of blocks.",
        soft_wrap=True,
    )
    console.print(f"To start from it: pbkv serve --set predictor.state_path={target.resolve()}", soft_wrap=True, markup=False)
    write_json(
        {
            "state_path": str(target.resolve()),
            "workflows": len(workflows),
            "steps": steps,
            "step_contexts": step_contexts,
            "block_contexts": block_contexts,
            "seconds": spent_s,
        },
        json_target,
    )


def _check(out: Path, targets: tuple[Path, ...], force: bool) -> None:
    """Raises:
    InvalidArgument: a file cannot be written, or an existing one would be lost.
    """
    if out.exists() and not out.is_dir():
        raise InvalidArgument("--out", f"{out} is not a folder")
    for path in targets:
        if path.is_dir():
            raise InvalidArgument("--out", f"cannot write {path}: it is a folder")
        if path.exists() and not force:
            raise InvalidArgument("--out", f"{path} exists already; --force replaces it")


def _report(config: "PredictorConfig", workflows: "list[TraceWorkflow]", share: float, console: "Console") -> None:
    """Prints how well held-back tasks are forecast by a trained and by an untrained predictor."""
    from rich.progress import Progress

    from pbkv_cluster.predictor_service.predictor import PREDICTORS
    from pbkv_cluster.simulator.prediction.training import train_predictor
    from pbkv_cluster.simulator.prediction.trial import recorded_events, rows_of
    from pbkv_cluster.simulator.traces.split import part_of

    shares = {"learn": 1 - share, "hold back": share}
    parts = [part_of(workflow.group, shares, "hold-back") for workflow in workflows]
    learnt, held_back = (
        [workflow for workflow, part in zip(workflows, parts, strict=True) if part == name] for name in ("learn", "hold back")
    )
    if not learnt or not held_back:
        console.print("There are too few tasks to hold any back, so forecasts are not evaluated.", soft_wrap=True)
        return
    with Progress(console=console, disable=not console.is_terminal, transient=True) as progress:
        task = progress.add_task("evaluating", total=len(learnt) + 2 * len(held_back))
        trained, fresh = (PREDICTORS.get(config.model)(config) for _ in range(2))
        for events in recorded_events(learnt, "learn"):
            train_predictor(trained, [events])
            progress.advance(task)
        test_events = recorded_events(held_back, "held")
        rows = [
            row
            for name, predictor in ((_FRESH, fresh), (_TRAINED, trained))
            for row in rows_of(name, predictor, test_events, True, lambda: progress.advance(task))
        ]
    console.print(_table(rows, Counter(workflow.workload for workflow in held_back)))


def _table(rows: "list[Row]", workflows: "Counter[str]") -> "Table":
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    from pbkv_cluster.simulator.prediction.trial import mean

    horizon = max(row.k for row in rows)
    table = Table(title="Held-back tasks: how often the next agent was the likeliest in the forecast", box=SIMPLE_HEAD)
    table.add_column("workload", no_wrap=True)
    for heading in ("workflows", "next: untrained", "trained", f"in {horizon} steps: untrained", "trained"):
        table.add_column(heading, justify="right")
    for workload, count in workflows.items():
        group = [row for row in rows if row.workload == workload]
        shares = [percent(mean(group, "top1", name, "after", k)) for k in (1, horizon) for name in (_FRESH, _TRAINED)]
        table.add_row(Text(workload), f"{count:,}", *shares)
    return table


def _train(config: "PredictorConfig", workflows: "list[TraceWorkflow]", target: Path, console: "Console") -> tuple[int, int]:
    """Trains and writes. Returns the number of contexts in each of the two parts of the access model."""
    from rich.progress import track

    from pbkv_cluster.predictor_service.access.prior import load_prior
    from pbkv_cluster.predictor_service.access.versions import VersionedModels
    from pbkv_cluster.predictor_service.predictor import PREDICTORS
    from pbkv_cluster.predictor_service.state.file import access_path, write_state
    from pbkv_cluster.reuse.model.access_model import KIND, VERSION
    from pbkv_cluster.simulator.prediction.training import trained_state
    from pbkv_cluster.simulator.workload.access_logs import access_logs

    def with_progress(doing: str) -> "Iterable[TraceWorkflow]":
        return track(workflows, doing, console=console, disable=not console.is_terminal)

    predictor = PREDICTORS.get(config.model)(config)
    trained = trained_state(config, with_progress("agents"))
    access = VersionedModels(load_prior(config.prior))
    for log in access_logs(with_progress("blocks"), trained.workloads):
        access.learn(log)
    try:
        write_state(target, predictor.kind, predictor.version, trained.state)
        write_state(access_path(target), KIND, VERSION, access.dump())
    except OSError as error:
        raise InvalidArgument("--out", f"cannot write {target}: {error.strerror}") from error
    return access.contexts
