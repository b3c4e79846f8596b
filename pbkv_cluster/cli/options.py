"""Options that several commands take, and how they become a configuration."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pbkv_cluster.core.errors import InvalidArgument

if TYPE_CHECKING:
    from pbkv_cluster.core.config import Settings

DEFAULT_ENDPOINT = "127.0.0.1:26100"

ConfigFile = Annotated[
    Path | None, typer.Option("--config", metavar="FILE", help="YAML configuration file; by default the one PBKV_CONFIG names.")
]
Assignments = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="SECTION.FIELD=VALUE", help="Set a configuration field; may be repeated. See `pbkv config show`."
    ),
]
Endpoint = Annotated[str, typer.Option(metavar="HOST:PORT", help="Gateway of a running cluster.")]
Workers = Annotated[int | None, typer.Option(help="GPU workers (cluster.workers).", show_default=False)]
Model = Annotated[
    str | None, typer.Option(metavar="PATH", help="Local directory or hub id of the model (model.path).", show_default=False)
]
Policy = Annotated[str | None, typer.Option(help="Reuse policy of the GPU tier (cache.policy).", show_default=False)]
GpuBlocks = Annotated[
    int | None, typer.Option(help="Blocks of 16 tokens in a worker's GPU pool (engine.gpu_blocks).", show_default=False)
]

PredictorAddress = Annotated[
    str, typer.Option("--predictor", metavar="HOST:PORT", help="Predictor; by default it is looked up in Redis.")
]
RedisUrl = Annotated[
    str | None, typer.Option("--redis", metavar="URL", help="Redis of a running cluster (redis.url).", show_default=False)
]


def load_settings(file: Path | None, assignments: Sequence[str] | None, flags: Mapping[str, Any]) -> "Settings":
    """The configuration from its file, the environment and the flags of a command.

    Args:
        assignments: of --set.
        flags: values of a command's own flags by field path; None where one was not given.

    Raises:
        InvalidArgument: an assignment has no value, or a field is set twice.
        ConfigError: a value is wrong or unknown.
    """
    from pbkv_cluster.core.config import load

    values = {path: value for path, value in flags.items() if value is not None}
    for assignment in assignments or ():
        path, equals, value = assignment.partition("=")
        if not equals:
            raise InvalidArgument("--set", f"must be SECTION.FIELD=VALUE, got {assignment!r}")
        if path in values:
            raise InvalidArgument("--set", f"{path} is set twice, to {values[path]!r} and to {value!r}")
        values[path] = value
    return load(file, os.environ, values)


def names_of(text: str) -> tuple[str, ...]:
    """The names of an option that takes several, with commas between them."""
    return tuple(name.strip() for name in text.split(","))


def pressures_of(text: str) -> tuple[float, ...]:
    """The shares of --pressure.

    Raises:
        InvalidArgument: they are no numbers.
    """
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise InvalidArgument("--pressure", f"must be numbers with commas between them, got {text!r}") from None


def check_policies(names: Sequence[str]) -> None:
    """Raises:
    InvalidArgument: there is no such policy.
    """
    from pbkv_cluster.cache.policies import POLICIES

    for name in names:
        POLICIES.get(name)


def check_predictor(address: str, redis_url: str) -> None:
    """Raises:
    InvalidArgument: neither tells where the predictor is.
    """
    if not address and not redis_url:
        raise InvalidArgument("--predictor", "is missing; give it, or --redis (redis.url) of a running cluster")
