"""`pbkv otel`: receives OpenTelemetry spans of agent applications for a running cluster."""

from typing import TYPE_CHECKING, Annotated

import typer

from pbkv_cluster.cli.interrupts import catch_interrupts, on_event_loop, run_until
from pbkv_cluster.cli.options import (
    Assignments,
    ConfigFile,
    PredictorAddress,
    RedisUrl,
    check_predictor,
    connected,
    load_settings,
    serve_as_member,
)

if TYPE_CHECKING:
    from pbkv_cluster.core.config import Config

_LOOPBACK = "127.0.0.1"


@connected
def otel(
    config: ConfigFile = None,
    assignments: Assignments = None,
    predictor: PredictorAddress = "",
    redis: RedisUrl = None,
    port: Annotated[
        int | None, typer.Option(help="Port of OTLP over gRPC; 0: any free port (otel.port).", show_default=False)
    ] = None,
    http_port: Annotated[
        int | None,
        typer.Option(help="Port of OTLP over HTTP; 0: any free port, -1: none (otel.http_port).", show_default=False),
    ] = None,
    host: Annotated[str | None, typer.Option(help="Address to bind (cluster.host).", show_default=False)] = None,
) -> None:
    """Turn OpenTelemetry spans of agents into workflow events for the predictor, until Ctrl-C.

    `pbkv serve` does the same if otel.enabled is set.
    """
    flags = {"redis.url": redis, "otel.port": port, "otel.http_port": http_port, "cluster.host": host}
    settings = load_settings(config, assignments, flags)
    check_predictor(predictor, settings.config.redis.url)
    from pbkv_cluster.core.logs.setup import set_up_logs

    set_up_logs(settings.config.logging)
    serve_as_member(settings.config.security)
    on_event_loop(_serve(settings.config, predictor))


async def _serve(config: "Config", address: str) -> None:
    from pbkv_cluster.core.clock import SystemClock
    from pbkv_cluster.integrations.otel.member import make_receiver
    from pbkv_cluster.integrations.predictor import find_predictor
    from pbkv_cluster.rpc.security import this_process

    interrupted = catch_interrupts()
    async with find_predictor(address, config) as predictor:
        receiver = make_receiver(config.otel, predictor, SystemClock())
        try:
            served = await receiver.start(config.cluster.host or _LOOPBACK)
            typer.echo(f"spans  {served} (OTLP over gRPC)")
            if receiver.http_address:
                typer.echo(f"       {this_process().http}://{receiver.http_address}/v1/traces (OTLP over HTTP)")
            await run_until(interrupted.wait(), receiver.wait())
            typer.echo("stopping", err=True)
        finally:
            await receiver.stop()
