"""What `pbkv top` says: lines and rows of its tables."""

from collections.abc import Mapping, Sequence
from typing import Any

from pbkv_cluster.cli.operation.workflows import doing
from pbkv_cluster.cli.terminal.output import percent, share
from pbkv_cluster.cli.top.reader import Snapshot

WORKER_COLUMNS = ("worker", "steps", "waiting", "gpu", "host", "disk", "policy", "guard", "saved over LRU", "prefetched, used")
WORKFLOW_COLUMNS = ("workflow", "workload", "steps", "latest agent", "now", "expected next", "workers")
ORDERS = ("latest", "steps", "idle", "workload")
_TIERS = ("gpu", "host", "disk")


def head_lines(snapshot: Snapshot) -> list[str]:
    """The state of the cluster, hit rates, and what is not well."""
    status = snapshot.status
    totals = status["totals"]
    prompt = totals["prompt_tokens"]
    delivered = ", ".join(f"{tier} {percent(_rate(tokens, prompt))}" for tier, tokens in totals["delivered_tokens"].items())
    lines = [
        f"{status['cluster']}: {status['open_workflows']:,} open workflows, {status['running_steps']:,} running steps; "
        f"predictor {_up(status['predictor_reachable'])}, index {_up(status['index_reachable'])}",
        f"delivered {percent(totals['delivered_rate'])} ({delivered or 'nothing'}), "
        f"captured {percent(totals['captured_rate'])}, available {share(totals['available_tokens'], prompt)} tokens "
        f"in {totals['steps']:,} steps",
    ]
    return [*lines, *(f"! {problem}" for problem in status["degraded"])]


def worker_rows(snapshot: Snapshot) -> list[tuple[str, ...]]:
    """A row for each worker, in the order of WORKER_COLUMNS."""
    return [_worker(worker) for worker in snapshot.status["workers"]]


def workflow_rows(snapshot: Snapshot, order: str) -> list[tuple[str, ...]]:
    """A row for each workflow, in the order of WORKFLOW_COLUMNS."""
    return [
        (
            each["workflow_id"],
            each["workload"] or "-",
            f"{each['steps']:,}",
            each["agent"] or "-",
            doing(each),
            ", ".join(f"{agent} {percent(probability)}" for agent, probability in each["next"].items()) or "-",
            ", ".join(each["workers"]) or "-",
        )
        for each in _ordered(snapshot.workflows, order)
    ]


def _ordered(workflows: Sequence[dict[str, Any]], order: str) -> Sequence[dict[str, Any]]:
    match order:
        case "steps":
            return sorted(workflows, key=lambda each: -each["steps"])
        case "idle":
            return sorted(workflows, key=lambda each: -each["idle_s"])
        case "workload":
            return sorted(workflows, key=lambda each: (each["workload"], each["workflow_id"]))
    return workflows


def _worker(worker: Mapping[str, Any]) -> tuple[str, ...]:
    if not worker["reachable"]:
        return (worker["worker_id"], "not reachable", *("-" for _ in WORKER_COLUMNS[2:]))
    guard, prefetch = worker["guard"], worker["prefetch"]
    loaded = 0 if prefetch is None else prefetch["loaded_tokens"]
    return (
        worker["worker_id"],
        f"{worker['running']:,}",
        f"{worker['waiting']:,}",
        *(_tier(worker["tiers"].get(tier)) for tier in _TIERS),
        worker["policy"],
        "none" if guard is None else "LRU evicts" if guard["lru_active"] else "policy evicts",
        "-" if guard is None else f"{guard['saved_s']:+,.1f} s",
        f"{loaded:,}, {percent(_rate(prefetch['used_tokens'], loaded))}" if loaded else "-",
    )


def _tier(tier: Mapping[str, int] | None) -> str:
    if tier is None or not tier["capacity_blocks"]:
        return "-"
    return f"{percent(tier['used_blocks'] / tier['capacity_blocks'])} of {tier['capacity_blocks']:,}"


def _rate(part: int, of: int) -> float | None:
    return part / of if of else None


def _up(reachable: bool) -> str:
    return "reachable" if reachable else "NOT reachable"
