"""`pbkv predictor`: how well it forecasts, and why it says what it says."""

import typer

from pbkv_cluster.cli.prediction.evaluate import evaluate
from pbkv_cluster.cli.prediction.explain import explain

predictor_app = typer.Typer(name="predictor", help="Judge the predictor's forecasts.", no_args_is_help=True)
predictor_app.command("eval")(evaluate)
predictor_app.command("explain")(explain)
