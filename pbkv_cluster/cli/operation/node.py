"""`pbkv node`: the nodes of a cluster, and taking one out of service before it goes."""

import time
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer

from pbkv_cluster.cli.interrupts import on_event_loop
from pbkv_cluster.cli.options import RedisUrl
from pbkv_cluster.cli.targets import JsonTarget, check_json_target, write_json
from pbkv_cluster.cli.terminal.output import result_console
from pbkv_cluster.core.errors import DeadlineExceeded, InvalidArgument, NotFound, Unavailable

if TYPE_CHECKING:
    from pbkv_cluster.store.cluster_index import Directory, NodeStateEntry

T = TypeVar("T")
_POLL_S = 0.25
_TTL_S = 30.0  # of a request: for as long it waits for the cluster to take note
_SHORT_ID = 12  # characters

node_app = typer.Typer(name="node", help="List the nodes of a cluster, and take one out of service.", no_args_is_help=True)

NodeName = Annotated[str, typer.Argument(metavar="NODE", help="Address of the node, or the beginning of its id.")]
ClusterName = Annotated[str, typer.Option("--cluster", metavar="NAME", help="Name of the cluster, if several run.")]


@node_app.command("ls")
def list_nodes(cluster: ClusterName = "", redis: RedisUrl = None, json_target: JsonTarget = None) -> None:
    """List the nodes of a cluster and what each does."""
    from rich.table import Table

    check_json_target(json_target)
    nodes = _with_directory(cluster, redis, lambda directory: directory.node_states())
    table = Table("node", "id", "state", "reason")
    for each in nodes:
        table.add_row(each.host, each.node_id[:_SHORT_ID], each.state, each.reason)
    result_console(json_target).print(table)
    write_json([_json(each) for each in nodes], json_target)


@node_app.command()
def drain(
    node: NodeName,
    reason: Annotated[str, typer.Option(help="Why, for whoever looks at the cluster's status.")] = "",
    wait: Annotated[float, typer.Option(metavar="SECONDS", min=0, help="Wait at most so long until it is drained.")] = 300.0,
    cluster: ClusterName = "",
    redis: RedisUrl = None,
    json_target: JsonTarget = None,
) -> None:
    """Take a node out of service: it gets no new steps, and its members end when the running steps have.

    Steps that take longer than cluster.drain_timeout_s go on at other nodes. After that, the machine can be switched off.
    """
    from pbkv_cluster.store.cluster_index import NodeState

    check_json_target(json_target)
    found = _with_directory(cluster, redis, lambda directory: _ask(directory, node, True, reason, NodeState.DRAINED, wait))
    result_console(json_target).print(f"{node} is drained", highlight=False, soft_wrap=True)
    write_json(_json(found), json_target)


@node_app.command()
def resume(
    node: NodeName,
    wait: Annotated[float, typer.Option(metavar="SECONDS", min=0, help="Wait at most so long until it serves.")] = 300.0,
    cluster: ClusterName = "",
    redis: RedisUrl = None,
    json_target: JsonTarget = None,
) -> None:
    """Put a drained node back into service."""
    from pbkv_cluster.store.cluster_index import NodeState

    check_json_target(json_target)
    found = _with_directory(cluster, redis, lambda directory: _ask(directory, node, False, "", NodeState.SERVING, wait))
    result_console(json_target).print(f"{node} serves", highlight=False, soft_wrap=True)
    write_json(_json(found), json_target)


def _json(node: "NodeStateEntry") -> dict[str, str]:
    return {"node_id": node.node_id, "host": node.host, "state": node.state, "reason": node.reason}


def _with_directory(name: str, redis_url: str | None, call: "Callable[[Directory], Awaitable[T]]") -> T:
    """Calls with the directory of a cluster: of one that runs on this machine, unless a Redis is given."""
    from pbkv_cluster.cluster.startup.run_record import find
    from pbkv_cluster.core.config import ClusterConfig
    from pbkv_cluster.store.cluster_index import Directory, connect

    if redis_url is None:
        record = find(name)
        name, redis_url = record.name, record.redis_url
        if not redis_url:
            raise Unavailable(f"cluster {name!r} has not started yet")

    async def run(url: str) -> T:
        cluster = name or ClusterConfig().name
        redis = connect(url, cluster)
        try:
            return await call(Directory(redis, cluster, _TTL_S))
        finally:
            await redis.aclose()

    return on_event_loop(run(redis_url))


async def _ask(directory: "Directory", text: str, drain: bool, reason: str, wanted: str, wait_s: float) -> "NodeStateEntry":
    """Asks something of a node, and waits until its state is as wanted. Returns that state."""
    import asyncio

    from pbkv_cluster.store.cluster_index import NodeRequest

    node = _find(text, await directory.node_states())
    if node.state == wanted:
        return node
    await directory.request_of_node(NodeRequest(node.node_id, drain, reason))
    deadline = time.monotonic() + wait_s
    while node.state != wanted:
        if time.monotonic() >= deadline:
            raise DeadlineExceeded(f"after {wait_s:g} s the node is {node.state}, not {wanted}; the cluster goes on with it")
        await asyncio.sleep(_POLL_S)
        present = [each for each in await directory.node_states() if each.node_id == node.node_id]
        if not present:
            raise NotFound(f"node {text} has left the cluster")
        node = present[0]
    return node


def _find(text: str, nodes: "list[NodeStateEntry]") -> "NodeStateEntry":
    """The node that is meant.

    Raises:
        Unavailable: no process follows the nodes of this cluster.
        NotFound: there is no such node.
        InvalidArgument: there are several.
    """
    if not nodes:
        raise Unavailable("there is no such cluster, or nobody follows its nodes")
    found = [each for each in nodes if text and (each.host == text or each.node_id.startswith(text))]
    if not found:
        raise NotFound(f"no node {text!r}; nodes: {', '.join(f'{each.host} ({each.node_id[:_SHORT_ID]})' for each in nodes)}")
    if len(found) > 1:
        raise InvalidArgument("NODE", f"{text!r} is {len(found)} nodes; give the beginning of an id")
    return found[0]
