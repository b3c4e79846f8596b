"""`pbkv explain`: what is expected of a workflow and where its cache lies, or why a block lies where it does."""

from collections.abc import Iterable
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pbkv_cluster.cli.interrupts import on_event_loop
from pbkv_cluster.cli.operation.cache import entry_json
from pbkv_cluster.cli.operation.decisions import SHORT_KEY, ago, decision_json, decisions_table, value
from pbkv_cluster.cli.operation.workflows import CACHE_UNKNOWN, doing, summary_json
from pbkv_cluster.cli.options import DEFAULT_ENDPOINT, Endpoint, connected
from pbkv_cluster.cli.targets import JsonTarget, check_json_target, write_json
from pbkv_cluster.cli.terminal.output import result_console
from pbkv_cluster.core.errors import InvalidArgument, NotFound, PbkvError

if TYPE_CHECKING:
    from rich.console import Console

    from pbkv_cluster.rpc.v1 import inspection_pb2, store_pb2

_RUNS = 1000  # of a workflow that are looked at
_SHOWN_RUNS = 20
_KEY_CHARACTERS = 32
_STANDINGS = {
    "in_use": "a running step uses it",
    "needed": "blocks after it, which the tier or a faster one holds, need it",
}


@connected
def explain(
    subject: Annotated[
        str, typer.Argument(metavar="BLOCK|WORKFLOW", help="Key of a block, or its beginning; or id of an open workflow.")
    ],
    limit: Annotated[int, typer.Option(min=1, max=1000, help="Decisions.")] = 20,
    endpoint: Endpoint = DEFAULT_ENDPOINT,
    json_target: JsonTarget = None,
) -> None:
    """Explain what is expected of a workflow and where its cache lies, or why a block lies where it does.

    Of a block: its tiers, who has used it, what it is worth and what would leave before it, and the last decisions about it.
    `pbkv cache ls` prints keys of blocks. Caches remember their last decisions (cache.decision_log_bytes).
    """
    check_json_target(json_target)
    found = on_event_loop(_explain(endpoint, subject, limit))
    console = result_console(json_target)
    if "workflow" in found:
        _print_workflow(found, console)
    else:
        _print_block(found, console)
    write_json(found, json_target)


async def _explain(endpoint: str, subject: str, limit: int) -> dict[str, Any]:
    from pbkv_cluster.client.inspection import InspectionClient
    from pbkv_cluster.client.store import StoreClient

    async with InspectionClient(endpoint) as client, StoreClient(endpoint) as store:
        try:
            workflow = await client.workflow(subject)
        except NotFound:
            if not 0 < len(subject) <= _KEY_CHARACTERS or set(subject.lower()) - set("0123456789abcdef"):
                raise NotFound(f"{subject!r} is neither an open workflow nor the beginning of a block key") from None
            return _block_json(subject, await store.explain_block(subject, limit))
        found = _workflow_json(workflow, *await _forecast(endpoint, subject))
        try:
            runs = (await store.list_cache(workflow=subject, limit=_RUNS, last_decisions=True)).entries
            decisions = await store.decisions_about(subject, limit)
        except CACHE_UNKNOWN as error:
            return found | _cached_json((), ()) | {"cached_problem": str(error)}
    return found | _cached_json(runs, decisions)


async def _forecast(endpoint: str, workflow: str) -> tuple[list[dict[str, Any]], str]:
    """What is expected of a workflow, step by step; or why nothing is known."""
    from pbkv_cluster.cli.prediction.explain import explanation_json, fetch_forecast

    try:
        return explanation_json(workflow, await fetch_forecast(endpoint, workflow))["steps"], ""
    except PbkvError as error:
        return [], str(error)


def _workflow_json(
    answer: "inspection_pb2.GetWorkflowResponse", forecast: list[dict[str, Any]], problem: str
) -> dict[str, Any]:
    return {
        "workflow": summary_json(answer.summary),
        "path": [step.agent_id for step in answer.steps],
        "expected": forecast,
        "forecast_problem": problem,
        "cached_problem": "",
    }


def _cached_json(runs: "Iterable[store_pb2.CachedBlocks]", decisions: "Iterable[store_pb2.CacheDecision]") -> dict[str, Any]:
    where: dict[str, dict[str, int]] = {}
    listed = []
    for run in runs:
        entry = entry_json(run)
        tiers = where.setdefault(entry["worker_id"], {})
        for tier, tokens in entry["tiers"].items():
            tiers[tier] = tiers.get(tier, 0) + tokens
        entry["last_decision"] = decision_json(run.last_decision) if run.HasField("last_decision") else None
        listed.append(entry)
    return {
        "cached_tokens": {worker: where[worker] for worker in sorted(where)},
        "runs": listed,
        "decisions": [decision_json(each) for each in decisions],
    }


def _block_json(subject: str, answer: "store_pb2.ExplainCacheResponse") -> dict[str, Any]:
    from pbkv_cluster.rpc.convert import tier_from_wire

    if not answer.keys:
        raise NotFound(f"{subject!r} is neither an open workflow nor the beginning of a block key that a cache knows")
    if len(answer.keys) > 1:
        raise InvalidArgument("BLOCK", f"{subject!r} is the beginning of several keys: {', '.join(answer.keys)}")
    return {
        "block": answer.keys[0],
        "caches": [
            {
                "worker_id": block.worker_id,
                "policy": block.policy,
                "run": entry_json(block.run),
                "places": [
                    {
                        "tier": str(tier_from_wire(place.tier)),
                        "slot": place.slot,
                        "value": place.value,
                        "by_lru": place.by_lru,
                        "standing": place.standing,
                        "ahead": place.ahead,
                        "candidates": place.candidates,
                        "is_copy": place.is_copy,
                    }
                    for place in block.places
                ],
            }
            for block in answer.blocks
        ],
        "decisions": [decision_json(each) for each in answer.decisions],
    }


def _print_workflow(found: dict[str, Any], console: "Console") -> None:
    from rich.table import Table
    from rich.text import Text

    from pbkv_cluster.cli.terminal.output import percent

    summary = found["workflow"]
    of = f" of workload {summary['workload']}" if summary["workload"] else ""
    console.print(Text(f"Workflow {summary['workflow_id']}{of}: {summary['steps']} steps, {doing(summary)}"))
    console.print(Text(f"path: {' > '.join(found['path']) or 'no step yet'}"))
    if found["expected"]:
        expected = Table("step", "goes on", "likeliest agents, if it does", title="Expected", title_justify="left")
        for ahead, step in enumerate(found["expected"], start=1):
            likeliest = sorted(step["agents"].items(), key=lambda each: -each[1])[:3]
            named = ", ".join(f"{agent} {percent(probability)}" for agent, probability in likeliest if probability > 0)
            expected.add_row(f"+{ahead}", percent(step["survival"]), Text(named or "no agent is known"))
        console.print(expected)
    else:
        console.print(Text(f"expected: not known ({found['forecast_problem'] or 'there is no forecast of it yet'})"))
    if found["cached_problem"]:
        console.print(Text(f"cached: not known ({found['cached_problem']})"))
        return
    if not found["runs"]:
        console.print("nothing of it is cached")
    else:
        lines = [f"{worker}: {_tiers(tiers)}" for worker, tiers in found["cached_tokens"].items()]
        console.print(Text(f"cached, in tokens: {'; '.join(lines)}"))
        console.print(_runs_table(found["runs"][:_SHOWN_RUNS]))
        if len(found["runs"]) > _SHOWN_RUNS:
            console.print(f"{_SHOWN_RUNS} of {len(found['runs'])} runs of blocks; --json has all")
    _print_decisions(found, console)


def _runs_table(runs: list[dict[str, Any]]) -> Any:
    from rich.table import Table
    from rich.text import Text

    table = Table("block", "worker", "tokens", "in", "used by", "why", title="What is cached of it", title_justify="left")
    for run in runs:
        last = run["last_decision"]
        why = "-" if last is None else f"{last['what']} {ago(last['age_s'])}: {last['words']} (value {value(last)})"
        stop = run["start_tokens"] + run["tokens"]
        table.add_row(
            Text(run["name"][:SHORT_KEY]),
            Text(run["worker_id"]),
            f"{run['start_tokens']:,} to {stop:,}",
            _tiers(run["tiers"]),
            Text(", ".join(run["agents"]) or "-"),
            Text(why),
        )
    return table


def _print_block(found: dict[str, Any], console: "Console") -> None:
    from rich.text import Text

    console.print(Text(f"Block {found['block']}"))
    if not found["caches"]:
        console.print("no cache holds it any more")
    for cache in found["caches"]:
        run = cache["run"]
        stop = run["start_tokens"] + run["tokens"]
        users = ", ".join([*run["workflows"], *run["agents"]]) or "no active workflow"
        used = "in use" if run["in_use"] else f"last used {ago(run['idle_s'])}"
        leased = f", leased for another {run['leased_s']:.0f} s" if run["leased_s"] else ""
        tokens = f"tokens {run['start_tokens']:,} to {stop:,}"
        console.print(Text(f"{cache['worker_id']}: in a run of {tokens}, used by {users}, {used}{leased}"))
        for place in cache["places"]:
            console.print(Text(f"  {place['tier']} slot {place['slot']}: {_place(place, cache['policy'])}"))
    _print_decisions(found, console)


def _place(place: dict[str, Any], policy: str) -> str:
    by = "by LRU, which evicts now" if place["by_lru"] else f"value {place['value']:.4g} by {policy}"
    copy = ", a copy of what a faster tier holds" if place["is_copy"] else ""
    if place["standing"] == "candidate":
        return f"{by}{copy}; {place['ahead']:,} of {place['candidates']:,} runs of blocks that can leave the tier go before it"
    return f"{by}{copy}; it stays: {_STANDINGS.get(place['standing'], place['standing'])}"


def _print_decisions(found: dict[str, Any], console: "Console") -> None:
    if found["decisions"]:
        console.print(decisions_table(found["decisions"], "Last decisions"))
    else:
        console.print("no decision about it is remembered (cache.decision_log_bytes)")


def _tiers(tiers: dict[str, int]) -> str:
    return ", ".join(f"{tier} {tokens:,}" for tier, tokens in tiers.items()) or "nothing"
