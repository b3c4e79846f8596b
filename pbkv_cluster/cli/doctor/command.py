"""`pbkv doctor`: looks for what keeps a cluster from running well, and says what to do about it."""

from collections.abc import Iterator
from typing import Annotated

import typer

from pbkv_cluster.cli.doctor.finding import Finding, Level
from pbkv_cluster.cli.options import Assignments, ConfigFile, connected, load_settings
from pbkv_cluster.cli.targets import JsonTarget, check_json_target, write_json
from pbkv_cluster.cli.terminal.output import result_console

_STYLES = {Level.OK: "green", Level.WARNING: "yellow", Level.ERROR: "bold red"}


@connected
def doctor(
    config: ConfigFile = None,
    assignments: Assignments = None,
    endpoint: Annotated[
        str, typer.Option(metavar="HOST:PORT", help="Look at the cluster with this gateway, too.", show_default=False)
    ] = "",
    json_target: JsonTarget = None,
) -> None:
    """Look for what keeps a cluster from running here, or from running well: each finding with its remedy.

    Looks at software, memory, limits, GPU, ports, Redis and clock, as the configuration wants them. Changes nothing. Exits with
    1 if there is an error; warnings are none.
    """
    check_json_target(json_target)
    findings = list(_findings(config, assignments, endpoint))
    console = result_console(json_target)
    from rich.text import Text

    for each in findings:
        line = Text(f"{each.level:<8}", style=_STYLES[each.level])
        line.append(f"{each.check}: {each.found}", style="")
        if each.remedy:
            line.append(f" -> {each.remedy}", style="bold")
        console.print(line, soft_wrap=True)
    write_json(
        [{"check": each.check, "level": each.level, "found": each.found, "remedy": each.remedy} for each in findings],
        json_target,
    )
    if any(each.level is Level.ERROR for each in findings):
        raise typer.Exit(1)


def _findings(config: ConfigFile, assignments: Assignments, endpoint: str) -> Iterator[Finding]:
    from pbkv_cluster.cli.doctor.gpu import check_gpu, has_gpu
    from pbkv_cluster.cli.doctor.machine import check_machine
    from pbkv_cluster.cli.doctor.network import check_ports, check_redis
    from pbkv_cluster.cli.doctor.running import check_cluster
    from pbkv_cluster.cli.doctor.software import check_software

    settings = load_settings(config, assignments, {}).config
    yield from check_software()
    yield from check_machine(settings, has_gpu())
    yield from check_gpu(settings)
    yield from check_ports(settings)
    yield from check_redis(settings)
    if endpoint:
        yield from check_cluster(endpoint)
