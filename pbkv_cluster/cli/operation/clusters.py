"""`pbkv clusters`: the clusters that were started on this machine."""

import time

import typer

from pbkv_cluster.cli.targets import JsonTarget, check_json_target, write_json
from pbkv_cluster.cli.terminal.output import result_console


def clusters(json_target: JsonTarget = None) -> None:
    """List the clusters of this user that were started on this machine and run."""
    from rich.table import Table

    from pbkv_cluster.cluster.startup.run_record import running

    check_json_target(json_target)
    found = running()
    if found:
        table = Table("cluster", "process", "gateway", "started", "output")
        for each in found:
            started = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(each.started_at))
            table.add_row(each.name, str(each.pid), each.gateway or "starting", started, each.log_path or "its terminal")
        result_console(json_target).print(table)
    else:
        typer.echo("no cluster of this user runs on this machine", err=True)
    write_json(
        [
            {
                "name": each.name,
                "pid": each.pid,
                "gateway": each.gateway,
                "started_at": each.started_at,
                "log_path": each.log_path,
            }
            for each in found
        ],
        json_target,
    )
