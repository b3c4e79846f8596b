"""`pbkv train`: teaches a predictor on recorded workflows, for a cluster to start from."""

import time
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pbkv_cluster.cli.options import Assignments, ConfigFile, load_settings
from pbkv_cluster.core.errors import InvalidArgument

if TYPE_CHECKING:
    from rich.console import Console

    from pbkv_cluster.core.config import PredictorConfig
    from pbkv_cluster.simulator.traces import TraceWorkflow

_NAME = "predictor.state"


def train(
    files: Annotated[
        list[Path],
        typer.Argument(metavar="TRACE...", help="Your workflows: step traces or coding-agent sessions, .jsonl or .jsonl.gz."),
    ],
    out: Annotated[Path, typer.Option(metavar="DIR", help="Folder for the state; made where it is missing.")],
    force: Annotated[bool, typer.Option("--force", help="Replace a state that is there.")] = False,
    config: ConfigFile = None,
    assignments: Assignments = None,
) -> None:
    """Teach the predictor and policy pbkv on recorded workflows, one after the other.

    Writes what a predictor service writes that has seen them, for predictor.state_path.
    """
    from rich.console import Console

    from pbkv_cluster.predictor_service.state_file import access_path
    from pbkv_cluster.simulator.trace_files import load_trace

    target = out / _NAME
    _check(out, (target, access_path(target)), force)
    predictor = load_settings(config, assignments, {}).config.predictor
    workflows = [workflow for path in files for workflow in load_trace(path).workflows]
    if not workflows:
        raise InvalidArgument("TRACE", "there are no workflows to learn from")
    console = Console()
    began = time.perf_counter()
    contexts, places = _train(predictor, workflows, target, console)
    steps = sum(len(workflow.steps) for workflow in workflows)
    console.print(
        f"Learnt from {len(workflows):,} workflows, {steps:,} steps, in {time.perf_counter() - began:.1f} s: "
        f"{contexts:,} contexts of the next step, {places:,} of the use of blocks.",
        soft_wrap=True,
    )
    console.print(f"To start from it: pbkv serve --set predictor.state_path={target.resolve()}", soft_wrap=True, markup=False)


def _check(out: Path, targets: tuple[Path, ...], force: bool) -> None:
    """Raises:
    InvalidArgument: nothing can be written there, or would be lost.
    """
    if out.exists() and not out.is_dir():
        raise InvalidArgument("--out", f"{out} is not a folder")
    for path in targets:
        if path.is_dir():
            raise InvalidArgument("--out", f"cannot write {path}: it is a folder")
        if path.exists() and not force:
            raise InvalidArgument("--out", f"{path} exists already; --force replaces it")


def _train(config: "PredictorConfig", workflows: "list[TraceWorkflow]", target: Path, console: "Console") -> tuple[int, int]:
    """Learns and writes. Returns how many contexts the two parts of the access model know."""
    from rich.progress import track

    from pbkv_cluster.predictor_service.base import PREDICTORS
    from pbkv_cluster.predictor_service.state_file import access_path, write_state
    from pbkv_cluster.simulator.access_logs import access_logs
    from pbkv_cluster.simulator.forecasting import train as train_predictor
    from pbkv_cluster.store.access.model import KIND, VERSION
    from pbkv_cluster.store.access.model import train as train_access

    def shown(doing: str) -> "Iterable[TraceWorkflow]":
        return track(workflows, doing, console=console, disable=not console.is_terminal)

    predictor = PREDICTORS.get(config.model)(config)
    state = train_predictor(config, shown("agents"))
    access = train_access(access_logs(shown("blocks")))
    update = access.export()
    try:
        write_state(target, predictor.kind, predictor.version, state)
        write_state(access_path(target), KIND, VERSION, update.to_bytes())
    except OSError as error:
        raise InvalidArgument("--out", f"cannot write {target}: {error.strerror}") from error
    return len(update.contexts), len(update.places)
