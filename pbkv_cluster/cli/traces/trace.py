"""`pbkv trace`: traces as files."""

import typer

from pbkv_cluster.cli.traces.check import check
from pbkv_cluster.cli.traces.convert import convert

trace_app = typer.Typer(name="trace", help="Check traces of workflows, and convert those of others.", no_args_is_help=True)
trace_app.command()(check)
trace_app.command()(convert)
