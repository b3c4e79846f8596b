"""`pbkv status`: the workers of a cluster, and how well its cache does."""

from typing import TYPE_CHECKING, Annotated, Any

import typer

from pbkv_cluster.cli.interrupts import on_event_loop
from pbkv_cluster.cli.options import DEFAULT_ENDPOINT, Endpoint, connected
from pbkv_cluster.cli.serving.address_lines import address_lines
from pbkv_cluster.cli.serving.guard_lines import guard_json, guard_line
from pbkv_cluster.cli.serving.prefetch_lines import prefetch_json, prefetch_line
from pbkv_cluster.cli.serving.status_lines import (
    access_line,
    down_line,
    gateway_lines,
    member_line,
    nodes_line,
    reasons_line,
)
from pbkv_cluster.cli.targets import JsonTarget, check_json_target, write_json
from pbkv_cluster.cli.terminal.output import result_console, share
from pbkv_cluster.cli.terminal.plain_text import plain

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from pbkv_cluster.rpc.v1 import store_pb2, workflow_pb2

    Status = workflow_pb2.GetClusterStatusResponse


@connected
def status(
    endpoint: Endpoint = DEFAULT_ENDPOINT,
    json_target: JsonTarget = None,
    check: Annotated[bool, typer.Option("--check", help="Exit with 1 if a part of the cluster is not well.")] = False,
) -> None:
    """Show a cluster's workers, cache tiers, hit rates and decisions."""
    check_json_target(json_target)
    response = on_event_loop(fetch_status(endpoint))
    print_status(response, result_console(json_target))
    write_json(status_json(response), json_target)
    if check and (problems := degraded(response)):
        typer.echo("\n".join(f"pbkv: {plain(problem)}" for problem in problems), err=True)
        raise typer.Exit(1)


def degraded(response: "Status") -> list[str]:
    """What does not serve, or not as it should, one line each; empty if the whole cluster is well."""
    problems = []
    if not response.index_reachable:
        problems.append("the index in Redis is not reachable")
    if not response.predictor_reachable:
        problems.append("the predictor is not reachable")
    if not response.workers:
        problems.append("there is no worker")
    problems += [f"{gateway.name} is not reachable" for gateway in response.gateways if not gateway.reachable]
    problems += [f"{worker.worker_id} is not reachable" for worker in response.workers if not worker.reachable]
    problems += [down_line(member) for member in response.members if not member.up]
    return problems + [f"{each.member}: {each.problem}" for each in response.problems]


async def fetch_status(endpoint: str) -> "Status":
    """Raises:
    Unavailable: no gateway answers.
    """
    from pbkv_cluster.client import AsyncClient

    async with AsyncClient(endpoint) as client:
        return await client.status()


def status_json(response: "Status") -> dict[str, Any]:
    """A status as JSON values: counts in tokens and blocks, rates in [0, 1]."""
    from pbkv_cluster.rpc.convert import tiers_from_wire

    totals = response.totals
    prompt = totals.prompt_tokens
    captured, delivered = tiers_from_wire(totals.captured), tiers_from_wire(totals.delivered)

    def rate(tokens: int) -> float | None:
        return tokens / prompt if prompt else None

    return {
        "cluster": response.cluster,
        "model": response.model,
        "predictor_reachable": response.predictor_reachable,
        "predictor_address": response.predictor_address,
        "index_reachable": response.index_reachable,
        "open_workflows": response.open_workflows,
        "running_steps": response.running_steps,
        "gateways": [
            {
                "name": gateway.name,
                "node_id": gateway.node_id,
                "address": gateway.address,
                "http_address": gateway.http_address,
                "reachable": gateway.reachable,
                "open_workflows": gateway.open_workflows,
                "running_steps": gateway.running_steps,
            }
            for gateway in response.gateways
        ],
        "log_path": response.log_path,
        "discovery_url": response.discovery_url,
        "dashboard_url": response.dashboard_url,
        "members": [
            {
                "name": member.name,
                "up": member.up,
                "restarts": member.restarts,
                "last_failure": member.last_failure,
            }
            for member in response.members
        ],
        "nodes": [
            {"node_id": node.node_id, "host": node.host, "state": node.state, "reason": node.reason} for node in response.nodes
        ],
        "degraded": degraded(response),
        "workers": [
            {
                "worker_id": worker.worker_id,
                "node_id": worker.node_id,
                "address": worker.address,
                "reachable": worker.reachable,
                "running": worker.running,
                "waiting": worker.waiting,
                "engine": worker.engine,
                "policy": worker.store.policy,
                "tiers": {
                    _tier_name(tier): {
                        "capacity_blocks": tier.capacity_blocks,
                        "used_blocks": tier.used_blocks,
                        "locked_blocks": tier.locked_blocks if tier.HasField("locked_blocks") else None,
                        "block_bytes": tier.block_bytes,
                        "ready_blocks": tier.ready_blocks,
                    }
                    for tier in worker.store.tiers
                },
                "decisions": dict(sorted(worker.store.decisions.items())),
                "guard": guard_json(worker.store),
                "prefetch": prefetch_json(worker.store),
                "access_updates_applied": worker.access_updates_applied if worker.HasField("access_updates_applied") else None,
                "access_workflows": worker.access_workflows if worker.HasField("access_workflows") else None,
            }
            for worker in response.workers
        ],
        "totals": {
            "steps": totals.steps,
            "prompt_tokens": prompt,
            "available_tokens": totals.available_tokens,
            "captured_tokens": {tier.value: tokens for tier, tokens in captured.items()},
            "delivered_tokens": {tier.value: tokens for tier, tokens in delivered.items()},
            "computed_tokens": totals.computed_tokens,
            "generated_tokens": totals.generated_tokens,
            "available_rate": rate(totals.available_tokens),
            "captured_rate": rate(sum(captured.values())),
            "delivered_rate": rate(sum(delivered.values())),
        },
        "http_address": response.http_address,
        "decisions": dict(sorted(response.decisions.items())),
        "problems": [{"member": each.member, "problem": each.problem} for each in response.problems],
        "reasons": {each.member: dict(sorted(each.times.items())) for each in response.reasons},
    }


def print_status(response: "Status", console: "Console") -> None:
    """Prints a status for people."""
    from rich.text import Text

    up = {True: ("reachable", ""), False: ("not reachable", "bold red")}
    console.print(Text(f"cluster {response.cluster}, model {response.model}"))
    console.print(
        Text.assemble(
            "predictor ",
            up[response.predictor_reachable],
            ", index ",
            up[response.index_reachable],
            f", {response.open_workflows} open workflows, {response.running_steps} running steps",
        )
    )
    if line := nodes_line(response):
        console.print(Text(line))
    for member in (each for each in response.members if each.restarts):
        console.print(Text(member_line(member), style="" if member.up else "bold red"))
    for each in response.problems:
        console.print(Text(f"{each.member}: {each.problem}", style="bold red"))
    for reasons in response.reasons:
        if line := reasons_line(reasons):
            console.print(Text(line, style="bold yellow"))
    for line, well in gateway_lines(response):
        console.print(Text(line, style="" if well else "bold red"), soft_wrap=True)
    for line in address_lines(response):
        console.print(Text(line), soft_wrap=True)
    console.print(_workers_table(response))
    for worker in response.workers:
        if worker.store.HasField("guard"):
            console.print(Text(f"{worker.worker_id}: {guard_line(worker.store.guard)}"))
        if worker.store.prefetch.loaded_tokens:
            console.print(Text(f"{worker.worker_id}: {prefetch_line(worker.store.prefetch)}"))
        if worker.access_updates_applied:
            console.print(Text(f"{worker.worker_id}: {access_line(worker)}"))
    console.print(_rates_table(response))
    if response.decisions or response.reasons or any(worker.store.decisions for worker in response.workers):
        console.print(_decisions_table(response))


def _tier_use(tier: "store_pb2.TierStat") -> str:
    """Blocks in use, and how much of the tier's memory has been taken from the machine, where it is not all of it."""
    use = f"{_tier_name(tier)} {tier.used_blocks:,} of {tier.capacity_blocks:,}"
    return use if tier.ready_blocks >= tier.capacity_blocks else f"{use} ({tier.ready_blocks / tier.capacity_blocks:.0%} taken)"


def _workers_table(response: "Status") -> "Table":
    from rich.table import Table
    from rich.text import Text

    table = Table("worker", "address", "steps", "policy", "blocks in use", title="Workers")
    all_ours = {worker.engine for worker in response.workers} <= {"", "pbkv"}
    for worker in response.workers:
        steps = Text(f"{worker.running} running\n{worker.waiting} waiting")
        tiers = [_tier_use(tier) for tier in worker.store.tiers]
        table.add_row(
            Text("\n".join([worker.worker_id, worker.node_id, *([] if all_ours else [worker.engine])])),
            Text(worker.address),
            steps if worker.reachable else Text("not reachable", style="bold red"),
            Text(worker.store.policy),
            Text("\n".join(tiers)),
        )
    return table


def _rates_table(response: "Status") -> "Table":
    from rich.table import Table

    from pbkv_cluster.rpc.convert import tiers_from_wire

    totals = response.totals
    prompt = totals.prompt_tokens
    table = Table("tokens", "hit rate", "by tier", title=f"{totals.steps:,} steps since the gateways started")
    table.add_row("available", share(totals.available_tokens, prompt), "")
    for label, wire in (("captured", totals.captured), ("delivered", totals.delivered)):
        tiers = tiers_from_wire(wire)
        by_tier = ", ".join(f"{tier.value} {share(tokens, prompt)}" for tier, tokens in tiers.items())
        table.add_row(label, share(sum(tiers.values()), prompt), by_tier)
    return table


def _decisions_table(response: "Status") -> "Table":
    from rich.table import Table

    table = Table("decided by", "reason", "times", title="Decisions")
    sources = [
        ("gateways" if len(response.gateways) > 1 else "gateway", response.decisions),
        *((worker.worker_id, worker.store.decisions) for worker in response.workers),
    ]
    sources += [(each.member, each.times) for each in response.reasons]
    for name, decisions in sources:
        for reason, times in sorted(decisions.items()):
            table.add_row(name, reason, f"{times:,}")
    return table


def _tier_name(tier: "store_pb2.TierStat") -> str:
    from pbkv_cluster.rpc.convert import tier_from_wire

    return tier_from_wire(tier.tier).value
