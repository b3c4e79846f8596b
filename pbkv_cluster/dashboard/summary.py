"""The state of a cluster at one moment, as JSON values for the page. Figures are the metrics' own: bytes, tokens, seconds."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from pbkv_cluster.core.metrics import names
from pbkv_cluster.core.metrics.metric import Metric, Source
from pbkv_cluster.core.tokens import BLOCK_TOKENS
from pbkv_cluster.core.usage import Tier
from pbkv_cluster.dashboard.scraping.metrics_text import Labels, Scrape, Scrapes
from pbkv_cluster.store.cluster_index import EndpointEntry, MemberEntry, ProblemsEntry, WorkerEntry

Json = dict[str, Any]


class WorkerUse(NamedTuple):
    """Who uses what one worker has cached, in tokens by tier."""

    retired: dict[str, int]  # no active workflow has used it
    shared: Mapping[Tier, int]  # several have


def totals(gateway: Scrape) -> Json:
    """What the gateways have counted since they started: steps, and tokens."""
    return {
        "steps": gateway.value(names.STEPS.name, outcome="finished"),
        "refused": gateway.value(names.STEPS.name, outcome="refused"),
        "failed": gateway.value(names.STEPS.name, outcome="failed"),
        "prompt": gateway.value(names.PROMPT_TOKENS.name),
        "available": gateway.value(names.AVAILABLE_TOKENS.name),
        "captured": gateway.by(names.CAPTURED_TOKENS.name, "tier"),
        "delivered": gateway.by(names.DELIVERED_TOKENS.name, "tier"),
        "computed": gateway.value(names.COMPUTED_TOKENS.name),
        "generated": gateway.value(names.GENERATED_TOKENS.name),
    }


def worker(entry: WorkerEntry, scrape: Scrape | None, use: WorkerUse | None) -> Json:
    """One worker.

    Args:
        entry: in the directory.
        scrape: None: it does not answer.
        use: who uses what it has cached; None: not known.
    """
    found: Json = {"name": entry.worker_id, "engine": entry.engine, "node": entry.node_id, "answers": scrape is not None}
    if scrape is None:
        return found
    tiers = {}
    for tier in (Tier.GPU, Tier.HOST, Tier.DISK):
        capacity = scrape.value(names.TIER_CAPACITY_BYTES.name, tier=tier)
        if capacity:
            tiers[str(tier)] = {
                "capacity": capacity,
                "used": scrape.value(names.TIER_USED_BYTES.name, tier=tier),
                "locked": _known(scrape, names.TIER_LOCKED_BYTES, tier=tier),
                "retired": None if use is None else _bytes_of(use.retired, tier, entry),
                "shared": None if use is None else _bytes_of(use.shared, tier, entry),
            }
    return {
        **found,
        "tiers": tiers,
        "running": scrape.value(names.RUNNING_STEPS.name),
        "waiting": scrape.value(names.WAITING_STEPS.name),
        "waiting_tokens": _known(scrape, names.WAITING_TOKENS),
        "prefill_rate": scrape.value(names.PREFILL_RATE.name),
        "forecast_age": _known(scrape, names.FORECAST_AGE_SECONDS),
        "guard": _guard(scrape),
        "prefetch": _ahead(scrape, names.PREFETCHED_BLOCKS),
        "staged": _ahead(scrape, names.STAGED_BLOCKS),
    }


def _bytes_of(tokens: Mapping[Any, int], tier: Tier, entry: WorkerEntry) -> int:
    return tokens.get(tier, 0) // BLOCK_TOKENS * entry.block_bytes


def _ahead(scrape: Scrape, metric: Metric) -> Json | None:
    """Blocks that were brought ahead, by how that ended; None: the worker's engine does not tell."""
    return scrape.by(metric.name, "outcome") if scrape.has(metric.name) else None


def _known(scrape: Scrape, metric: Metric, **labels: str) -> float | None:
    """One series; None where the worker's engine has no such metric."""
    return scrape.value(metric.name, **labels) if scrape.has(metric.name) else None


def _guard(scrape: Scrape) -> Json | None:
    if not scrape.has(names.GUARD_LRU_ACTIVE.name):
        return None
    return {
        "lru_active": bool(scrape.value(names.GUARD_LRU_ACTIVE.name)),
        "switches": scrape.value(names.GUARD_SWITCHES.name),
        "prompt": scrape.value(names.GUARD_PROMPT_TOKENS.name),
        "saved_s": scrape.value(names.GUARD_SAVED_SECONDS.name),
        **scrape.by(names.GUARD_HIT_TOKENS.name, "order"),
    }


def arena(scrape: Scrape) -> Json:
    """Host memory of a node, in bytes."""
    return {
        "capacity": scrape.value(names.ARENA_CAPACITY_BYTES.name),
        "taken": scrape.value(names.ARENA_TAKEN_BYTES.name),
    }


def prediction(predictor: Scrape, gateway: Scrape) -> Json:
    """How good forecasts were, against what came; by workload, too."""
    scored = predictor.by(names.CALIBRATION_SCORED.name, "probability")
    correct = predictor.by(names.CALIBRATION_CORRECT.name, "probability")
    accuracy = predictor.by(names.WORKLOAD_ACCURACY.name, "workload")
    predictability = predictor.by(names.WORKLOAD_PREDICTABILITY.name, "workload")
    steps = gateway.by(names.WORKLOAD_STEPS.name, "workload")
    prompt = gateway.by(names.WORKLOAD_PROMPT_TOKENS.name, "workload")
    available = gateway.by(names.WORKLOAD_AVAILABLE_TOKENS.name, "workload")
    delivered = gateway.by(names.WORKLOAD_DELIVERED_TOKENS.name, "workload")
    return {
        "scored": predictor.value(names.FORECASTS_SCORED.name),
        "correct": predictor.value(names.FORECASTS_CORRECT.name),
        "confidence": predictor.value(names.CONFIDENCE.name),
        "calibration": [
            {"up_to": float(up_to), "scored": count, "correct": correct.get(up_to, 0.0)}
            for up_to, count in sorted(scored.items(), key=lambda item: float(item[0]))
        ],
        "workloads": [
            {
                "name": name,
                "steps": steps.get(name, 0.0),
                "prompt": prompt.get(name, 0.0),
                "available": available.get(name, 0.0),
                "delivered": delivered.get(name, 0.0),
                "accuracy": accuracy.get(name),
                "predictability": predictability.get(name),
            }
            for name in sorted(steps.keys() | accuracy.keys() | predictability.keys(), key=lambda name: -prompt.get(name, 0.0))
        ],
    }


def members(
    entries: Sequence[MemberEntry], endpoints: Sequence[EndpointEntry], problems: Sequence[ProblemsEntry], scrapes: Scrapes
) -> list[Json]:
    """All members, and the process that runs the cluster: whether they serve, answer, and why they ended last."""
    where = {endpoint.member: endpoint for endpoint in endpoints}
    told = {entry.member: list(entry.problems) for entry in problems}
    states = {entry.name: entry for entry in entries}
    found = []
    for name in sorted(states.keys() | where.keys()):
        entry, endpoint, scrape = states.get(name), where.get(name), scrapes.get(name)
        found.append(
            {
                "name": name,
                "kind": endpoint.kind if endpoint else "",
                "node": endpoint.node_id if endpoint else "",
                "up": entry.up if entry else True,
                "answers": scrape is not None,
                "restarts": entry.restarts if entry else 0,
                "last_failure": entry.last_failure if entry else "",
                "problems": told.get(name, []),
                "memory": scrape.value("process_resident_memory_bytes") if scrape else None,
            }
        )
    return found


def all_of(kind: Source, endpoints: Sequence[EndpointEntry], scrapes: Scrapes) -> Scrape:
    """The answers of all members of a kind, added up; an empty one if none has answered."""
    series: dict[str, dict[Labels, float]] = {}
    for each in endpoints:
        if each.kind != kind or each.member not in scrapes:
            continue
        for name, values in scrapes[each.member].series.items():
            into = series.setdefault(name, {})
            for labels, value in values.items():
                into[labels] = into.get(labels, 0.0) + value
    return Scrape(series)
