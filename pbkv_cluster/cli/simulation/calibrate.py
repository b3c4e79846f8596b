"""`pbkv calibrate`: measures a model on this machine's device and writes the simulator's cost model."""

from pathlib import Path
from typing import Annotated

import typer

from pbkv_cluster.cli.options import Assignments, ConfigFile, load_settings
from pbkv_cluster.cli.targets import check_target

_LENGTHS = (128, 512, 1024, 2048, 4096, 8192, 16384)
_BATCHES = (1, 4, 16)


def calibrate(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="Local directory or hub id of the model.")],
    out: Annotated[Path, typer.Option(metavar="FILE", help="Where to write the cost model.")],
    longest: Annotated[int, typer.Option(min=128, help="Longest prompt to measure, in tokens.")] = 8192,
    config: ConfigFile = None,
    assignments: Assignments = None,
) -> None:
    """Measure how long prefill, decode and loads take, and write a cost model for `pbkv simulate --cost-model`."""
    check_target(out, "--out")
    settings = load_settings(config, assignments, {"model.path": model}).config

    import torch
    from rich.console import Console
    from rich.progress import Progress

    from pbkv_cluster.core.clock import SystemClock
    from pbkv_cluster.gpu_worker.model.loading import load_model
    from pbkv_cluster.gpu_worker.model.torch_runner import TorchRunner, pick_device
    from pbkv_cluster.simulator.engine.calibrate import calibrate as fit

    device = pick_device(settings.engine.device)
    if device.type == "cpu":
        torch.set_num_threads(settings.engine.threads)
    console = Console(stderr=True)
    with Progress(console=console, disable=not console.is_terminal, transient=True) as progress:
        task = progress.add_task("loading the model", total=None)

        def show(done: int, of: int, what: str) -> None:
            progress.update(task, completed=done, total=of, description=what)
            if not console.is_terminal:
                typer.echo(f"{done + 1} of {of}: {what}", err=True)

        loaded = load_model(settings.model, device)
        runner = TorchRunner(loaded, settings.engine, device)
        runner.allocate()
        lengths = [length for length in _LENGTHS if length <= longest]
        cost = fit(runner, loaded.shape.block_bytes, SystemClock(), lengths, _BATCHES, show)
    cost.save(out)
    typer.echo(f"prefill {1 / cost.prefill_token_s if cost.prefill_token_s else float('inf'):,.0f} tokens/s")
    typer.echo(f"decode {1000 * cost.decode_seconds(1, 1024):.2f} ms a token at 1,024 tokens of context")
    typer.echo(
        f"host memory {cost.host_bytes_per_s / 1e9:.2f} GB/s; a load delays a decode by {cost.copy_delay:.0%} of its time"
    )
