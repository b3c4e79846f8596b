"""`pbkv serve`: starts a cluster and keeps it up."""

from typing import Annotated

import typer

from pbkv_cluster.cli.options import Assignments, ConfigFile, GpuBlocks, Model, Policy, Workers, load_settings


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
        int | None, typer.Option(help="Port that clients connect to; 0 takes a free one (gateway.port).", show_default=False)
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
    with LocalCluster(settings.config) as cluster:
        typer.echo(f"gateway    {cluster.gateway_address}")
        if cluster.dashboard_url:
            typer.echo(f"dashboard  {cluster.dashboard_url}")
        typer.echo(f'try        pbkv submit --endpoint {cluster.gateway_address} --agent writer "Once upon a time"')
        typer.echo(f"           pbkv status --endpoint {cluster.gateway_address}")
        cluster.wait()
        typer.echo("stopping", err=True)
