"""`pbkv sidecar`: a proxy in front of engines that are not ours."""

from collections.abc import Sequence
from itertools import zip_longest
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pbkv_cluster.cli.interrupts import catch_interrupts, on_event_loop, run_until
from pbkv_cluster.cli.options import (
    Assignments,
    ConfigFile,
    RedisUrl,
    connected,
    load_settings,
    serve_as_member,
    split_names,
)
from pbkv_cluster.cli.targets import JsonTarget, check_json_target, write_json
from pbkv_cluster.cli.terminal.output import result_console, share
from pbkv_cluster.core.errors import InvalidArgument, Unavailable
from pbkv_cluster.core.locations.addresses import join_address, parse_address
from pbkv_cluster.core.security.exposure import is_loopback

if TYPE_CHECKING:
    from pbkv_cluster.core.config import Config

_LOOPBACK = "127.0.0.1"
_ANSWER_S = 10.0


@connected
def sidecar(
    config: ConfigFile = None,
    assignments: Assignments = None,
    engine: Annotated[
        list[str] | None,
        typer.Option(metavar="URL", help="An engine, such as http://10.0.0.7:8000; may be repeated (sidecar.engines)."),
    ] = None,
    kv_events: Annotated[
        list[str] | None,
        typer.Option(metavar="ENDPOINT", help="Where the engine publishes KV events; one for each --engine, in their order."),
    ] = None,
    kv_replay: Annotated[
        list[str] | None,
        typer.Option(metavar="ENDPOINT", help="Where the engine sends missed ones again; one for each --engine."),
    ] = None,
    kind: Annotated[str, typer.Option(help="Whose servers the engines are: vllm or sglang.")] = "vllm",
    hints: Annotated[
        str,
        typer.Option(
            metavar="FIELDS",
            help="Fields to add to requests: cache_salt, kv_hints, kv_transfer_params, priority, session_id; with commas.",
        ),
    ] = "",
    tokenizer: Annotated[
        str | None,
        typer.Option(metavar="PATH", help="Tokenizer of the engines' model (sidecar.tokenizer).", show_default=False),
    ] = None,
    predictor: Annotated[
        str,
        typer.Option(
            metavar="HOST:PORT", help="Predictor of a cluster; without it and --redis, the sidecar has one of its own."
        ),
    ] = "",
    redis: RedisUrl = None,
    port: Annotated[
        int | None, typer.Option(help="Port for clients; 0: any free port (sidecar.port).", show_default=False)
    ] = None,
    host: Annotated[str | None, typer.Option(help="Address to bind (cluster.host).", show_default=False)] = None,
    status: Annotated[bool, typer.Option("--status", help="Print the status of the sidecar that runs on this port.")] = False,
    json_target: JsonTarget = None,
) -> None:
    """Pass requests of OpenAI's API on to vLLM or SGLang, to the engine where they should finish first, until Ctrl-C."""
    check_json_target(json_target)
    flags: dict[str, Any] = {"redis.url": redis, "sidecar.port": port, "cluster.host": host, "sidecar.tokenizer": tokenizer}
    if engine:
        flags["sidecar.engines"] = _engines(engine, kv_events or (), kv_replay or (), kind, hints)
    elif kv_events or kv_replay or hints:
        raise InvalidArgument("--engine", "is missing; --kv-events, --kv-replay and --hints say more of engines given by it")
    if predictor:
        parse_address("--predictor", predictor)
    settings = load_settings(config, assignments, flags).config
    serve_as_member(settings.security)
    if status:
        _print_status(_ask_status(join_address(settings.cluster.host or _LOOPBACK, settings.sidecar.port)), json_target)
        return
    if json_target is not None:
        raise InvalidArgument("--json", "goes with --status")
    if not settings.sidecar.engines:
        raise InvalidArgument("sidecar.engines", "must name an engine (--engine http://HOST:PORT)")
    here = settings.cluster.host or _LOOPBACK
    if not is_loopback(here) and not settings.security.credentials:
        typer.echo(f"warning: everybody who can reach {here} can use the engines through this sidecar", err=True)
    from pbkv_cluster.core.logs.setup import set_up_logs

    set_up_logs(settings.logging)
    on_event_loop(_serve(settings, predictor))


def _engines(urls: Sequence[str], events: Sequence[str], replays: Sequence[str], kind: str, hints: str) -> list[dict[str, Any]]:
    for option, given in (("--kv-events", events), ("--kv-replay", replays)):
        if given and len(given) != len(urls):
            problem = f"must be given as often as --engine, {len(urls)} times, or not at all, got {len(given)}"
            raise InvalidArgument(option, f"{problem}; a configuration file (sidecar.engines) can say it of some")
    common = {"kind": kind, "hints": [name for name in split_names(hints) if name]}
    return [
        {"url": url, "kv_events": event, "kv_replay": replay, **common}
        for url, event, replay in zip_longest(urls, events, replays, fillvalue="")
    ]


async def _serve(config: "Config", predictor: str) -> None:
    from pbkv_cluster.core.clock import SystemClock
    from pbkv_cluster.integrations.sidecar.server import SidecarServer
    from pbkv_cluster.integrations.sidecar.workflow.forecasts import predictor_of
    from pbkv_cluster.rpc.security import this_process

    interrupted = catch_interrupts()
    clock = SystemClock()
    async with predictor_of(config, predictor, clock) as services:
        server = SidecarServer(config, services, clock)
        try:
            address = await server.start(config.cluster.host or _LOOPBACK, config.sidecar.port)
            typer.echo(f"sidecar  {this_process().http}://{address}/v1 (OpenAI's API; metrics at /metrics)")
            for engine in server.fleet.engines:
                typer.echo(f"engine   {engine.config.url}{'' if engine.is_live else ' (does not answer yet)'}")
            await run_until(interrupted.wait(), server.wait())
            typer.echo("stopping", err=True)
        finally:
            await server.stop()


def _ask_status(address: str) -> dict[str, Any]:
    import json
    from urllib.error import URLError
    from urllib.request import Request, urlopen

    from pbkv_cluster.integrations.sidecar.app import STATUS_PATH
    from pbkv_cluster.rpc.security import this_process

    security = this_process()
    key = {"authorization": f"Bearer {security.access.api_key}"} if security.access.api_key else {}
    try:
        request = Request(f"{security.http}://{address}{STATUS_PATH}", headers=key)
        with urlopen(request, timeout=_ANSWER_S, context=security.to_members()) as answer:
            told: dict[str, Any] = json.loads(answer.read())
    except (URLError, OSError, ValueError) as error:
        raise Unavailable(f"no sidecar answers at {address}: {error}") from error
    return told


def _print_status(told: dict[str, Any], json_target: str | None) -> None:
    from rich.table import Table

    console = result_console(json_target)
    table = Table("engine", "answers", "steps", "in flight", "blocks", "exact", "missed", "restarts", header_style="bold")
    for engine in told["engines"]:
        events = engine["kv_events"]
        counts = ("-", "-") if events is None else (str(events["gaps"]), str(events["restarts"]))
        yes_no = ["yes" if engine[name] else "no" for name in ("answers", "exact")]
        table.add_row(
            engine["url"],
            yes_no[0],
            *(str(engine[name]) for name in ("steps", "steps_in_flight", "blocks")),
            yes_no[1],
            *counts,
        )
    console.print(table)
    console.print(f"prompt tokens from caches  {share(told['cached_tokens'], told['prompt_tokens'])}")
    console.print(f"predictor  {told['predictor'] or 'does not answer'}, {told['forecasts']} forecasts")
    console.print(f"open workflows  {told['open_workflows']}; prompts are compared by {told['compares']}")
    write_json(told, json_target)
