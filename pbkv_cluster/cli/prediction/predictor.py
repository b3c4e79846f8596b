"""`pbkv predictor`: evaluates and explains forecasts."""

import typer

from pbkv_cluster.cli.prediction.evaluate import evaluate
from pbkv_cluster.cli.prediction.explain import explain

predictor_app = typer.Typer(name="predictor", help="Evaluate and explain the predictor's forecasts.", no_args_is_help=True)
predictor_app.command("eval")(evaluate)
predictor_app.command("explain")(explain)
