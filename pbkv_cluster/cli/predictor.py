"""`pbkv predictor`: how well it forecasts, and why it says what it says."""

import typer

from pbkv_cluster.cli.explain import explain
from pbkv_cluster.cli.predictor_eval import evaluate

predictor_app = typer.Typer(name="predictor", help="Judge the predictor's forecasts.", no_args_is_help=True)
predictor_app.command("eval")(evaluate)
predictor_app.command("explain")(explain)
