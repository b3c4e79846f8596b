"""`pbkv serve`: starts a cluster and serves until it is interrupted."""

from typing import TYPE_CHECKING, Annotated

import typer

from pbkv_cluster.cli.options import Assignments, ConfigFile, GpuBlocks, Model, Policy, Workers, load_settings
from pbkv_cluster.core.locations.urls import without_password

if TYPE_CHECKING:
    from pbkv_cluster.cluster.local import LocalCluster
    from pbkv_cluster.cluster.membership.member import MakeMember
    from pbkv_cluster.core.config import Config


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
) -> None:
    """Start a cluster and serve until Ctrl-C."""
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
    from pbkv_cluster.cluster.local import LocalCluster

    typer.echo("starting the cluster; Ctrl-C stops it", err=True)
    with LocalCluster(settings.config, _edges(settings.config), lambda line: typer.echo(line, err=True)) as cluster:
        try:
            print_addresses(cluster)
            cluster.wait()
        except KeyboardInterrupt:  # before `wait` handles it
            pass
        typer.echo("stopping", err=True)


def print_addresses(cluster: "LocalCluster") -> None:
    """Prints where the parts of a cluster are; no passwords."""
    from pbkv_cluster.integrations.otel.member import MEMBER

    typer.echo(f"gateway    {cluster.gateway_address}")
    if cluster.http_address:
        typer.echo(f"http       http://{cluster.http_address}/v1 (OpenAI's API; Anthropic's without /v1)")
    typer.echo(f"redis      {without_password(cluster.redis_url)}")
    if cluster.redis_url_file is not None:
        typer.echo(f'           with its password: export PBKV_REDIS_URL="$(cat {cluster.redis_url_file})"')
    if MEMBER in cluster.addresses:
        typer.echo(f"spans      {cluster.addresses[MEMBER]} (OTLP over gRPC)")
    if cluster.dashboard_url:
        typer.echo(f"dashboard  {cluster.dashboard_url}")
    typer.echo(f'try        pbkv submit --endpoint {cluster.gateway_address} --agent writer "Once upon a time"')
    typer.echo(f"           pbkv status --endpoint {cluster.gateway_address}")


def _edges(config: "Config") -> "dict[str, MakeMember]":
    """Members of packages above `cluster`, by name."""
    if not config.otel.enabled:
        return {}
    from pbkv_cluster.integrations.otel.member import MEMBER, OtelMember

    return {MEMBER: OtelMember}
