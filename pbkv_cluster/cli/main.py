"""Entry point of the `pbkv` command."""

import sys
from collections.abc import Sequence
from typing import Annotated

import typer

from pbkv_cluster import __version__
from pbkv_cluster.cli.config import config_app
from pbkv_cluster.cli.doctor.command import doctor
from pbkv_cluster.cli.extras import extra_of
from pbkv_cluster.cli.integrations.hints import hints
from pbkv_cluster.cli.integrations.otel import otel
from pbkv_cluster.cli.integrations.sidecar import sidecar
from pbkv_cluster.cli.operation.agents import agents_app
from pbkv_cluster.cli.operation.attach import attach
from pbkv_cluster.cli.operation.cache import cache_app
from pbkv_cluster.cli.operation.clusters import clusters
from pbkv_cluster.cli.operation.down import down
from pbkv_cluster.cli.operation.explain import explain
from pbkv_cluster.cli.operation.node import node_app
from pbkv_cluster.cli.operation.workflows import workflows_app
from pbkv_cluster.cli.prediction.predictor import predictor_app
from pbkv_cluster.cli.prediction.train import train
from pbkv_cluster.cli.serving.demo import demo
from pbkv_cluster.cli.serving.replay import replay
from pbkv_cluster.cli.serving.serve import serve
from pbkv_cluster.cli.serving.status import status
from pbkv_cluster.cli.serving.submit import submit
from pbkv_cluster.cli.simulation.calibrate import calibrate
from pbkv_cluster.cli.simulation.simulate import simulate
from pbkv_cluster.cli.simulation.tune import tune
from pbkv_cluster.cli.terminal.plain_text import plain
from pbkv_cluster.cli.top.command import top
from pbkv_cluster.cli.traces.record import record
from pbkv_cluster.cli.traces.report import report
from pbkv_cluster.cli.traces.trace import trace_app
from pbkv_cluster.cluster.startup.interrupts import Interrupts
from pbkv_cluster.core.errors import ConfigError, InvalidArgument, PbkvError
from pbkv_cluster.core.locations.installation import install_command
from pbkv_cluster.simulator.traces.step_traces import TraceError

EXIT_FAILED = 1
EXIT_BAD_INPUT = 2
EXIT_CODES = {
    0: "success",
    EXIT_FAILED: "it failed, or found what it looks for: nobody answers, what was named does not exist, `cache check` found a "
    "damaged block, `doctor` an error, `status --check` a part that is not well",
    EXIT_BAD_INPUT: "wrong usage, argument, configuration or input file; nothing was done",
    130: "interrupted by Ctrl-C or SIGTERM",
}
"""Of every command; docs/commands.md has them, too."""

app = typer.Typer(
    name="pbkv",
    help="A distributed KV-cache service for LLM agent workflows.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
for command in (
    serve,
    attach,
    down,
    clusters,
    submit,
    status,
    explain,
    top,
    doctor,
    replay,
    demo,
    record,
    report,
    simulate,
    tune,
    train,
    calibrate,
    otel,
    hints,
    sidecar,
):
    app.command()(command)
for commands in (predictor_app, config_app, cache_app, workflows_app, agents_app, node_app, trace_app):
    app.add_typer(commands)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"pbkv {__version__}")
        raise typer.Exit


@app.callback()
def _pbkv(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    pass


def main(args: Sequence[str] | None = None) -> None:
    """Runs one command and exits with one of EXIT_CODES.

    Args:
        args: arguments after `pbkv`; by default those of the process.
    """
    interrupts = Interrupts()
    interrupts.catch()
    try:
        app(args=None if args is None else list(args), prog_name="pbkv")
    except PbkvError as error:
        typer.echo("pbkv: " + plain("; ".join(line.strip() for line in str(error).splitlines())), err=True)
        bad_input = isinstance(error, ConfigError | InvalidArgument | TraceError)
        sys.exit(EXIT_BAD_INPUT if bad_input else EXIT_FAILED)
    except ModuleNotFoundError as error:
        extra = extra_of(error.name)
        if extra is None:
            raise
        message = f"pbkv: this command needs {error.name}, which is not installed: {install_command(extra)}"
        typer.echo(message, err=True)
        sys.exit(EXIT_FAILED)
    finally:
        interrupts.restore()


if __name__ == "__main__":
    main()
