"""`pbkv top`: a cluster in the terminal, live."""

from typing import TYPE_CHECKING, Annotated

import typer

from pbkv_cluster.cli.interrupts import on_event_loop
from pbkv_cluster.cli.options import DEFAULT_ENDPOINT, Endpoint, connected
from pbkv_cluster.cli.targets import JsonTarget, check_json_target, write_json

if TYPE_CHECKING:
    from pbkv_cluster.cli.top.reader import Snapshot


@connected
def top(
    interval: Annotated[float, typer.Option(metavar="SECONDS", min=0.1, help="From one look to the next.")] = 1.0,
    endpoint: Endpoint = DEFAULT_ENDPOINT,
    json_target: JsonTarget = None,
) -> None:
    """Show workers, tiers, hit rates, guard, queue and workflows with what is expected of them, live.

    Keys: q quits, s sorts workflows by another column, p pauses. A cluster that goes away is shown again when it is back.
    With --json, writes one look and shows nothing; that needs no terminal.
    """
    check_json_target(json_target)
    from pbkv_cluster.client.endpoints import parse_endpoints

    parse_endpoints(endpoint)
    if json_target is not None:
        write_json(on_event_loop(_read(endpoint)).to_json(), json_target)
        return
    from pbkv_cluster.cli.top.app import TopApp

    on_event_loop(_read(endpoint))  # a cluster that is not there is told in one line, not on a screen that waits for it
    TopApp(endpoint, interval).run()


async def _read(endpoint: str) -> "Snapshot":
    from pbkv_cluster.cli.top.reader import Reader

    async with Reader(endpoint) as reader:
        return await reader.read()
