"""Options that several commands share, and the configuration that they make."""

import inspect
import os
from collections.abc import Callable, Mapping, Sequence
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pbkv_cluster.cli.completion import complete_assignment, complete_policy
from pbkv_cluster.core.errors import InvalidArgument
from pbkv_cluster.core.locations.addresses import ADDRESS_VARIABLE, parse_address
from pbkv_cluster.core.locations.urls import without_password

if TYPE_CHECKING:
    from pbkv_cluster.core.config import SecurityConfig, Settings

DEFAULT_ENDPOINT = "127.0.0.1:26100"


def _gateway_here(context: typer.Context, endpoint: str) -> str:
    """The gateway of the one cluster that this user runs on this machine, where no address was given; else the address."""
    source = context.get_parameter_source("endpoint")
    if context.resilient_parsing or source is None or source.name != "DEFAULT":
        return endpoint
    from pbkv_cluster.cluster.startup.run_record import running

    found = [record.gateway for record in running() if record.gateway]
    return found[0] if len(found) == 1 else endpoint


ConfigFile = Annotated[
    Path | None,
    typer.Option("--config", metavar="FILE", help="YAML configuration file; by default the one that PBKV_CONFIG names."),
]
Assignments = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="SECTION.FIELD=VALUE",
        help="Set a configuration field; may be repeated. See `pbkv config show`.",
        autocompletion=complete_assignment,
    ),
]
Endpoint = Annotated[
    str,
    typer.Option(
        metavar="HOST:PORT",
        envvar=ADDRESS_VARIABLE,
        help="Gateway of a running cluster, or several with commas between them. Where none is given and you run just one "
        "cluster on this machine, that of this one.",
        callback=_gateway_here,
    ),
]
Workers = Annotated[int | None, typer.Option(help="Workers on each node (cluster.workers).", show_default=False)]
Model = Annotated[
    str | None, typer.Option(metavar="PATH", help="Local directory or hub id of the model (model.path).", show_default=False)
]
Policy = Annotated[
    str | None,
    typer.Option(help="Reuse policy of the GPU tier (cache.policy).", show_default=False, autocompletion=complete_policy),
]
GpuBlocks = Annotated[
    int | None, typer.Option(help="Blocks of 16 tokens in a worker's GPU pool (engine.gpu_blocks).", show_default=False)
]

Cluster = Annotated[str, typer.Argument(metavar="NAME", help="Name of the cluster, if several run on this machine.")]
ClusterProcess = Annotated[
    int, typer.Option("--pid", min=0, help="Its process, if several clusters have the name.", show_default=False)
]

PredictorAddress = Annotated[
    str, typer.Option("--predictor", metavar="HOST:PORT", help="Address of the predictor; by default looked up in Redis.")
]
RedisUrl = Annotated[
    str | None, typer.Option("--redis", metavar="URL", help="Redis of a running cluster (redis.url).", show_default=False)
]


_ApiKey = Annotated[
    str,
    typer.Option(
        "--api-key",
        envvar="PBKV_API_KEY",
        metavar="KEY",
        help="API key, where the cluster asks for one. Other users of this machine can see it; in the environment they cannot.",
        show_default=False,
        show_envvar=True,
    ),
]
_TlsCa = Annotated[
    str,
    typer.Option(
        "--tls-ca",
        envvar="PBKV_TLS_CA",
        metavar="FILE",
        help="Certificates that the cluster's may be signed by, or `system`: those of this machine. By default no TLS.",
        show_default=False,
    ),
]
_ACCESS = {"api_key": _ApiKey, "tls_ca": _TlsCa}


def connected(command: Callable[..., None]) -> Callable[..., None]:
    """A command with the options --api-key and --tls-ca, which hold for all connections that it makes."""

    @wraps(command)
    def run(*, api_key: str = "", tls_ca: str = "", **values: Any) -> None:
        if api_key or tls_ca:
            from pbkv_cluster.client.connection import access
            from pbkv_cluster.rpc.security import set_up_access

            set_up_access(access(api_key, tls_ca))
        command(**values)

    signature = inspect.signature(command)
    added = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default="", annotation=kind) for name, kind in _ACCESS.items()
    ]
    run.__signature__ = signature.replace(parameters=[*signature.parameters.values(), *added])  # type: ignore[attr-defined]
    run.__annotations__ = {**command.__annotations__, **_ACCESS}
    return run


def connect_as_member(config: "SecurityConfig") -> None:
    """Has a command show the cluster's own certificate, which members ask each other for, and the key that it was given."""
    if config.tls_certificate:
        from pbkv_cluster.core.security.tls import Tls
        from pbkv_cluster.rpc.security import Access, set_up_access, this_process

        set_up_access(Access(this_process().access.api_key, Tls.of(config)))


def serve_as_member(config: "SecurityConfig") -> None:
    """Has a command serve and connect as members do, with the key that it was given in place of the cluster key."""
    if config.credentials or config.tls_certificate:
        from pbkv_cluster.rpc.security import set_up_security, this_process

        set_up_security(config, this_process().access.api_key)


def load_settings(file: Path | None, assignments: Sequence[str] | None, flags: Mapping[str, Any]) -> "Settings":
    """The configuration from a file, the environment and the flags of a command.

    Args:
        file: configuration file; None: the one that PBKV_CONFIG names, if any.
        assignments: values of --set.
        flags: values of the command's own flags by field path; None: not given.

    Raises:
        InvalidArgument: an assignment has no value, or a field is set twice.
        ConfigError: a value is wrong or unknown.
    """
    from pbkv_cluster.core.config import load
    from pbkv_cluster.core.config.sources import shown

    values = {path: value for path, value in flags.items() if value is not None}
    for assignment in assignments or ():
        path, equals, value = assignment.partition("=")
        if not equals:
            raise InvalidArgument("--set", f"must be SECTION.FIELD=VALUE, got {without_password(assignment)!r}")
        if path in values:
            raise InvalidArgument(
                "--set", f"{path} is set twice, to {shown(path, values[path])!r} and to {shown(path, value)!r}"
            )
        values[path] = value
    return load(file, os.environ, values)


def split_names(text: str) -> tuple[str, ...]:
    """The names in the value of an option that takes several, separated by commas."""
    return tuple(name.strip() for name in text.split(","))


def check_predictor(address: str, redis_url: str) -> None:
    """Raises:
    InvalidArgument: neither the predictor's address nor a Redis to look it up in is given, or the address is none.
    """
    if address:
        parse_address("--predictor", address)
    if not address and not redis_url:
        raise InvalidArgument("--predictor", "is missing; give it, or --redis (redis.url) of a running cluster")
