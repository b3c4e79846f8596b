"""`pbkv serve`: starts a cluster and serves until it is interrupted."""

import logging
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated

import typer

from pbkv_cluster.cli.options import Assignments, ConfigFile, GpuBlocks, Model, Policy, Workers, load_settings
from pbkv_cluster.core.errors import StartupError
from pbkv_cluster.core.locations.urls import without_password

if TYPE_CHECKING:
    from pbkv_cluster.cluster.local import LocalCluster
    from pbkv_cluster.cluster.membership.member import MakeMember
    from pbkv_cluster.core.config import Config


_RANDOM = "a small one with random weights, for trials: its answers are noise (--model names another)"


def serve(
    config: ConfigFile = None,
    assignments: Assignments = None,
    address: Annotated[
        str | None,
        typer.Option(help="Ray cluster to join; by default one is started here (cluster.address).", show_default=False),
    ] = None,
    workers: Workers = None,
    model: Model = None,
    policy: Policy = None,
    gpu_blocks: GpuBlocks = None,
    port: Annotated[
        int | None, typer.Option(help="Port that clients connect to; 0: any free port (gateway.port).", show_default=False)
    ] = None,
    detach: Annotated[
        bool, typer.Option("--detach", help="Serve in the background, also after this shell has ended; see attach, down.")
    ] = False,
) -> None:
    """Start a cluster and serve until Ctrl-C, or with --detach until `pbkv down`."""
    settings = load_settings(
        config,
        assignments,
        {
            "cluster.address": address,
            "cluster.workers": workers,
            "model.path": model,
            "cache.policy": policy,
            "engine.gpu_blocks": gpu_blocks,
            "gateway.port": port,
        },
    )
    if detach:
        _detach(settings.config)
    else:
        typer.echo("starting the cluster; Ctrl-C stops it", err=True)
        _serve(settings.config)


def _serve(config: "Config", log_path: str = "", on_ready: Callable[[], None] = lambda: None) -> None:
    from pbkv_cluster.cluster.local import LocalCluster
    from pbkv_cluster.cluster.startup.run_record import RunRecord
    from pbkv_cluster.core.logs.setup import set_up_logs
    from pbkv_cluster.rpc.services import HEAD

    set_up_logs(config.logging, HEAD, least=logging.WARNING)  # it reports what is worth knowing by itself

    def report(line: str) -> None:
        typer.echo(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {line}" if log_path else line, err=True)

    record = RunRecord.of_this_process(config.cluster.name, log_path)
    with LocalCluster(config, _edges(config), report, record, _dashboard(config)) as cluster:
        try:
            typer.echo(f"model      {config.model.path or _RANDOM}")
            print_addresses(cluster)
            on_ready()
            cluster.wait()
        except KeyboardInterrupt:  # before `wait` handles it
            pass
        report("stopping")


def _detach(config: "Config") -> None:
    from pbkv_cluster.cli.operation.detached import detach
    from pbkv_cluster.cli.operation.log_file import log_path
    from pbkv_cluster.cluster.startup.run_record import running

    name = config.cluster.name
    if present := [each for each in running() if each.name == name]:
        raise StartupError(f"cluster.name: a cluster {name!r} runs here already (process {present[0].pid}); see `pbkv attach`")
    log = log_path(name)
    detached = detach(log)
    if detached is not None:  # in the process that serves
        _serve(config, str(log), detached.ready)
        return
    typer.echo(f"log        {log}")
    typer.echo(f"attach     pbkv attach {name}")
    typer.echo(f"stop       pbkv down {name}")


def print_addresses(cluster: "LocalCluster") -> None:
    """Prints where the parts of a cluster are; no passwords."""
    from pbkv_cluster.integrations.otel.member import MEMBER
    from pbkv_cluster.rpc.security import this_process

    gateways = ",".join(cluster.gateway_addresses)
    typer.echo(f"gateway    {gateways}")
    if cluster.http_address:
        typer.echo(f"http       {this_process().http}://{cluster.http_address}/v1 (OpenAI's API; Anthropic's without /v1)")
    typer.echo(f"redis      {without_password(cluster.redis_url)}")
    if cluster.redis_url_file is not None:
        typer.echo(f'           with its password: export PBKV_REDIS_URL="$(cat {cluster.redis_url_file})"')
    if MEMBER in cluster.addresses:
        typer.echo(f"spans      {cluster.addresses[MEMBER]} (OTLP over gRPC)")
    if cluster.discovery_url:
        typer.echo(f"metrics    {cluster.discovery_url} (Prometheus, http_sd)")
    if cluster.dashboard_url:
        typer.echo(f"dashboard  {cluster.dashboard_url}")
    if cluster.ray_dashboard_url:
        typer.echo(f"ray        {cluster.ray_dashboard_url}")
    typer.echo(f'try        pbkv submit --endpoint {gateways} --agent writer "Once upon a time"')
    typer.echo(f"           pbkv status --endpoint {gateways}")


def _edges(config: "Config") -> "dict[str, MakeMember]":
    """Members of packages above `cluster`, by name."""
    if not config.otel.enabled:
        return {}
    from pbkv_cluster.integrations.otel.member import MEMBER, OtelMember

    return {MEMBER: OtelMember}


def _dashboard(config: "Config") -> "MakeMember | None":
    """Makes the pages for operators; None if they are switched off or cannot be served here, which is said."""
    if not config.dashboard.enabled:
        return None
    if not config.metrics.enabled:
        typer.echo("no dashboard: metrics are switched off (metrics.enabled)", err=True)
        return None
    from pbkv_cluster.dashboard.member import Dashboard, missing_packages

    if missing := missing_packages():
        typer.echo(f"no dashboard: {missing}", err=True)
        return None
    return Dashboard
