"""`pbkv cache`: what the caches of a cluster hold, whether it is sound, and how to fill and empty them."""

from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pbkv_cluster.cli.interrupts import on_event_loop
from pbkv_cluster.cli.operation.block_requests import lease, prefetch, release
from pbkv_cluster.cli.operation.decisions import SHORT_KEY
from pbkv_cluster.cli.options import DEFAULT_ENDPOINT, Endpoint, connected
from pbkv_cluster.cli.targets import JsonTarget, check_json_target, write_json
from pbkv_cluster.cli.terminal.output import result_console

if TYPE_CHECKING:
    from pbkv_cluster.rpc.v1 import inspection_pb2, store_pb2

cache_app = typer.Typer(name="cache", help="What the caches of a cluster hold.", no_args_is_help=True)

_NAMELESS = "(no active one)"  # blocks that no active workflow, or none of its agents, is known to have used


class By(StrEnum):
    """What a line of `pbkv cache ls` stands for."""

    RUN = "run"
    WORKFLOW = "workflow"
    AGENT = "agent"


class Order(StrEnum):
    """Which lines come first."""

    LARGEST = "largest"
    HOTTEST = "hottest"


@cache_app.command()
@connected
def stat(endpoint: Endpoint = DEFAULT_ENDPOINT, json_target: JsonTarget = None) -> None:
    """Show how full the tiers of all workers are, and what the caches have decided."""
    from rich.table import Table

    check_json_target(json_target)
    answer = on_event_loop(_stat(endpoint))
    value = _stat_json(answer)
    console = result_console(json_target)
    table = Table("tier", "used", "of", "blocks", "in use", "memory taken")
    for tier in value["tiers"]:
        size = tier["block_bytes"]
        table.add_row(
            tier["tier"],
            _bytes(tier["used_blocks"] * size),
            _bytes(tier["capacity_blocks"] * size),
            f"{tier['used_blocks']:,} of {tier['capacity_blocks']:,}",
            "-" if tier["locked_blocks"] is None else f"{tier['locked_blocks']:,}",
            _bytes(tier["ready_blocks"] * size),
        )
    console.print(table)
    leases = value["leases"]
    console.print(
        f"{leases['leases']:,} block leases on {leases['leased_tokens']:,} tokens, "
        f"of {leases['limit_tokens']:,} that one tenant may have"
    )
    console.print(f"policy {value['policy']}; decisions, in blocks: {_counts(value['decisions'])}")
    write_json(value, json_target)


@cache_app.command()
@connected
def ls(
    by: Annotated[By, typer.Option(help="What a line stands for: blocks that are used together, or a sum.")] = By.RUN,
    order: Annotated[Order, typer.Option(help="First those with most tokens, or those used most lately.")] = Order.LARGEST,
    limit: Annotated[int, typer.Option(min=1, max=1000, help="Lines.")] = 20,
    workflow: Annotated[str, typer.Option(metavar="ID", help="Only what this workflow has used.")] = "",
    agent: Annotated[str, typer.Option(metavar="NAME", help="Only what this agent has used.")] = "",
    endpoint: Endpoint = DEFAULT_ENDPOINT,
    json_target: JsonTarget = None,
) -> None:
    """List what is cached: runs of blocks by the beginning of their key, or sums by active workflow or agent."""
    from rich.table import Table

    check_json_target(json_target)
    entries = [entry_json(entry) for entry in on_event_loop(_list(endpoint, by, order, limit, workflow, agent)).entries]
    table = Table(str(by), "tokens", *(("after", "worker") if by is By.RUN else ()), "in", "shared", "used by", "idle", "uses")
    for entry in entries:
        names = (
            [*entry["workflows"], *entry["agents"]] if by is By.RUN else entry["agents" if by is By.WORKFLOW else "workflows"]
        )
        table.add_row(
            (entry["name"][:SHORT_KEY] if by is By.RUN else entry["name"]) or _NAMELESS,
            f"{entry['tokens']:,}",
            *((f"{entry['start_tokens']:,}", entry["worker_id"]) if by is By.RUN else ()),
            ", ".join(f"{tier} {tokens:,}" for tier, tokens in entry["tiers"].items()),
            f"{entry['shared_tokens']:,}",
            ", ".join(names) or "-",
            "in use" if entry["in_use"] else f"{entry['idle_s']:.0f} s",
            f"{entry['recent_uses']:.1f}",
        )
    console = result_console(json_target)
    console.print(table if entries else "nothing is cached that fits")
    write_json(entries, json_target)


@cache_app.command()
@connected
def clear(endpoint: Endpoint = DEFAULT_ENDPOINT, json_target: JsonTarget = None) -> None:
    """Drop every cached block that no running step uses. Nothing fails by that; it is computed again."""
    check_json_target(json_target)
    dropped = on_event_loop(_clear(endpoint)).dropped_blocks
    result_console(json_target).print(f"{dropped:,} blocks dropped")
    write_json({"dropped_blocks": dropped}, json_target)


for request in (prefetch, lease, release):
    cache_app.command()(request)


@cache_app.command()
@connected
def check(endpoint: Endpoint = DEFAULT_ENDPOINT, json_target: JsonTarget = None) -> None:
    """Compare blocks in host memory and on disk with their checksums, and the cluster index with what the workers hold.

    Exits with 1 if a block is damaged, or if the index differs at two looks in the same way: what differs at one of them only
    is a change on its way. Neither costs a wrong token: a damaged or absent block is found out when it is read, and computed.
    """
    check_json_target(json_target)
    blocks, index = on_event_loop(_check(endpoint))
    value = {
        "checked_blocks": blocks.checked_blocks,
        "changed_blocks": blocks.changed_blocks,
        "damaged_blocks": blocks.damaged_blocks,
        "damaged": list(blocks.damaged),
        "index": {
            "indexed_blocks": index.indexed_blocks,
            "held_blocks": index.held_blocks,
            "unbacked_blocks": index.unbacked_blocks,
            "missing_blocks": index.missing_blocks,
            "misplaced_blocks": index.misplaced_blocks,
            "changing_blocks": index.changing_blocks,
            "differences": [
                {"worker_id": each.worker_id, "key": each.key, "problem": each.problem} for each in index.differences
            ],
        },
    }
    console = result_console(json_target)
    console.print(
        f"{blocks.checked_blocks:,} blocks compared, {blocks.damaged_blocks:,} damaged; "
        f"{blocks.changed_blocks:,} changed meanwhile"
    )
    for key in blocks.damaged:
        console.print(f"damaged: {key}", highlight=False)
    console.print(
        f"index: {index.indexed_blocks:,} blocks against {index.held_blocks:,} that workers hold; "
        f"{index.unbacked_blocks:,} lie in no slot, {index.missing_blocks:,} are missing, "
        f"{index.misplaced_blocks:,} lie elsewhere; {index.changing_blocks:,} changed meanwhile"
    )
    for each in index.differences:
        console.print(f"{each.problem}: {each.key} of {each.worker_id}", highlight=False)
    write_json(value, json_target)
    if blocks.damaged_blocks or index.unbacked_blocks or index.missing_blocks or index.misplaced_blocks:
        raise typer.Exit(1)


async def _stat(endpoint: str) -> "store_pb2.StoreStat":
    from pbkv_cluster.client.store import StoreClient

    async with StoreClient(endpoint) as client:
        return await client.stat()


async def _list(endpoint: str, by: By, order: Order, limit: int, workflow: str, agent: str) -> "store_pb2.ListCacheResponse":
    from pbkv_cluster.client.store import StoreClient

    async with StoreClient(endpoint) as client:
        return await client.list_cache(by=by, order=order, limit=limit, workflow=workflow, agent=agent)


async def _clear(endpoint: str) -> "store_pb2.ClearResponse":
    from pbkv_cluster.client.store import StoreClient

    async with StoreClient(endpoint) as client:
        return await client.clear()


async def _check(endpoint: str) -> "tuple[store_pb2.CheckCacheResponse, inspection_pb2.CheckIndexResponse]":
    from pbkv_cluster.client.inspection import InspectionClient
    from pbkv_cluster.client.store import StoreClient

    async with StoreClient(endpoint) as client, InspectionClient(endpoint) as inspection:
        return await client.check(), await inspection.check_index()


def _stat_json(stat: "store_pb2.StoreStat") -> dict[str, Any]:
    from pbkv_cluster.rpc.convert import tier_from_wire

    return {
        "policy": stat.policy,
        "tiers": [
            {
                "tier": str(tier_from_wire(tier.tier)),
                "capacity_blocks": tier.capacity_blocks,
                "used_blocks": tier.used_blocks,
                "locked_blocks": tier.locked_blocks if tier.HasField("locked_blocks") else None,
                "ready_blocks": tier.ready_blocks,
                "block_bytes": tier.block_bytes,
            }
            for tier in stat.tiers
        ],
        "decisions": dict(sorted(stat.decisions.items())),
        "leases": {
            "leases": stat.leases.leases,
            "leased_tokens": stat.leases.leased_tokens,
            "limit_tokens": stat.leases.limit_tokens,
        },
    }


def entry_json(entry: "store_pb2.CachedBlocks") -> dict[str, Any]:
    """A line of `pbkv cache ls` as JSON values."""
    from pbkv_cluster.rpc.convert import tiers_from_wire

    return {
        "name": entry.name,
        "worker_id": entry.worker_id,
        "start_tokens": entry.start_tokens,
        "tokens": entry.tokens,
        "tiers": {str(tier): tokens for tier, tokens in tiers_from_wire(entry.tiers).items()},
        "shared_tokens": entry.shared_tokens,
        "workflows": list(entry.workflows),
        "agents": list(entry.agents),
        "in_use": entry.in_use,
        "idle_s": entry.idle_s,
        "recent_uses": entry.recent_uses,
        "leased_s": entry.leased_s,
    }


def _bytes(size: float) -> str:
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size < 1024:
            return f"{size:,.0f} {unit}"
        size /= 1024
    return f"{size:,.1f} TiB"


def _counts(decisions: dict[str, int]) -> str:
    return ", ".join(f"{reason} {count:,}" for reason, count in decisions.items()) or "none"
