"""`pbkv attach`: follows the output of a detached cluster."""

from pathlib import Path
from typing import Annotated

import typer

from pbkv_cluster.cli.operation.log_file import follow, last_lines
from pbkv_cluster.cli.options import Cluster, ClusterProcess
from pbkv_cluster.core.errors import FailedPrecondition


def attach(
    name: Cluster = "",
    pid: ClusterProcess = 0,
    lines: Annotated[int, typer.Option(min=0, help="Lines to begin with.")] = 20,
) -> None:
    """Follow the output of a detached cluster until it ends; Ctrl-C leaves it running."""
    from pbkv_cluster.cluster.startup.run_record import find

    cluster = find(name, pid)
    if not cluster.log_path:
        raise FailedPrecondition(f"cluster {cluster.name!r} (process {cluster.pid}) prints to its own terminal, not to a log")
    path = Path(cluster.log_path)
    try:
        text, end = last_lines(path, lines)
        typer.echo(text, nl=False)
        for text in follow(path, end, lambda: cluster.runs):
            typer.echo(text, nl=False)
    except KeyboardInterrupt:
        typer.echo(f"left; cluster {cluster.name} goes on", err=True)
        return
    except OSError as error:
        raise FailedPrecondition(f"the log {path} cannot be read: {error.strerror}") from None
    typer.echo(f"cluster {cluster.name} has ended", err=True)
