"""Lines of `pbkv status` for people, one for each part of a cluster."""

from typing import TYPE_CHECKING

from pbkv_cluster.cli.serving.address_lines import http_scheme

if TYPE_CHECKING:
    from pbkv_cluster.rpc.v1 import workflow_pb2

    Status = workflow_pb2.GetClusterStatusResponse


def access_line(worker: "Status.Worker") -> str:
    """How much a worker's access model has learnt from."""
    learnt, updates = worker.access_workflows, worker.access_updates_applied
    return f"learnt from {learnt:,} workflows that have ended, by {updates:,} updates"


def down_line(member: "Status.Member") -> str:
    """What keeps a member from serving."""
    if member.restarts:
        return f"{member.name} is being restarted: {member.last_failure}"
    return f"{member.name} is being started" + (f": {member.last_failure}" if member.last_failure else "")


def nodes_line(response: "Status") -> str:
    """What each node does; empty where there is one, which serves."""
    if len(response.nodes) == 1 and response.nodes[0].state == "serving":
        return ""
    nodes = (f"{node.host} {node.state}" + (f" ({node.reason})" if node.reason else "") for node in response.nodes)
    return f"nodes: {', '.join(nodes)}" if response.nodes else ""


def member_line(member: "Status.Member") -> str:
    """How often a member has ended, and why it did last."""
    state = "" if member.up else " and is not back"
    return f"{member.name}: restarted {member.restarts} times{state}, last because {member.last_failure}"


def reasons_line(reasons: "Status.Reasons") -> str:
    """What a member has dropped or not understood so far; empty if there is nothing that one may want to mend."""
    from pbkv_cluster.integrations.otel.reasons import EXPECTED

    counts = [f"{reason} {times:,}" for reason, times in sorted(reasons.times.items()) if reason not in EXPECTED]
    return f"{reasons.member}: dropped or not understood so far: {', '.join(counts)}; its log says why" if counts else ""


def gateway_lines(response: "Status") -> list[tuple[str, bool]]:
    """Where clients of each gateway's APIs connect, and whether it answers."""
    scheme, lines = http_scheme(), []
    for each in response.gateways:
        load = f"{each.open_workflows} open workflows, {each.running_steps} running steps"
        http = f", OpenAI's API at {scheme}://{each.http_address}/v1, Anthropic's without /v1" if each.http_address else ""
        lines.append((f"{each.name} at {each.address}{http}: {load if each.reachable else 'not reachable'}", each.reachable))
    return lines
