"""`pbkv down`: ends a cluster from any shell of its machine."""

from typing import Annotated

import typer

from pbkv_cluster.cli.options import Cluster, ClusterProcess
from pbkv_cluster.cli.targets import JsonTarget, check_json_target, write_json
from pbkv_cluster.cli.terminal.output import result_console
from pbkv_cluster.core.errors import NotFound


def down(
    name: Cluster = "",
    pid: ClusterProcess = 0,
    timeout: Annotated[
        float, typer.Option(metavar="SECONDS", min=0, help="What has not ended in good order by then is killed.")
    ] = 60.0,
    json_target: JsonTarget = None,
) -> None:
    """Stop a cluster that was started on this machine, with all its processes on every node.

    A Ray cluster that it has joined goes on. If there is no such cluster, there is nothing to do, and that is no error.
    """
    from pbkv_cluster.cluster.startup.run_record import find
    from pbkv_cluster.cluster.startup.shutdown import end

    check_json_target(json_target)
    console = result_console(json_target)
    try:
        cluster = find(name, pid)
    except NotFound as error:
        console.print(f"nothing to stop: {error}", highlight=False, soft_wrap=True)
        write_json({"cluster": None, "pid": None}, json_target)
        return
    console.print(f"stopping cluster {cluster.name} (process {cluster.pid})", highlight=False, soft_wrap=True)
    end(cluster, timeout, lambda line: typer.echo(line, err=True))
    console.print("stopped")
    write_json({"cluster": cluster.name, "pid": cluster.pid}, json_target)
