"""The decisions of caches about blocks, in words and as JSON values."""

import time
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from pbkv_cluster.cache.decisions.reasons import reason_of

if TYPE_CHECKING:
    from rich.table import Table

    from pbkv_cluster.rpc.v1 import store_pb2

SHORT_KEY = 12  # characters


def decision_json(decision: "store_pb2.CacheDecision") -> dict[str, Any]:
    """A decision as JSON values; ages in seconds."""
    reason = reason_of(decision.reason)
    return {
        "worker_id": decision.worker_id,
        "what": "" if reason is None else str(reason.kind),
        "reason": decision.reason,
        "words": "" if reason is None else reason.words,
        "age_s": decision.age_s,
        "blocks": decision.blocks,
        "key": decision.key,
        "value": decision.value if decision.HasField("value") else None,
        "by_lru": decision.by_lru,
        "workflows": list(decision.workflows),
    }


def decisions_table(decisions: Iterable[dict[str, Any]], title: str) -> "Table":
    """Decisions for people."""
    from rich.table import Table
    from rich.text import Text

    table = Table("when", "worker", "block", "what", "why", "by value", "reason code", title=title, title_justify="left")
    for each in decisions:
        table.add_row(
            Text(ago(each["age_s"])),
            Text(each["worker_id"]),
            Text(blocks(each)),
            Text(each["what"] or "-"),
            Text(each["words"] or "-"),
            Text(value(each)),
            Text(each["reason"]),
        )
    return table


def blocks(decision: dict[str, Any]) -> str:
    """The last block that a decision was about, and how many there were."""
    more = decision["blocks"] - 1
    return f"{decision['key'][:SHORT_KEY]} and {more:,} before it" if more else str(decision["key"][:SHORT_KEY])


def value(decision: dict[str, Any]) -> str:
    """By what value a decision was taken; under LRU, that is when the block was used last."""
    if decision["value"] is None:
        return "-"
    return "last use (LRU)" if decision["by_lru"] else f"{decision['value']:.4g}"


def ago(seconds: float) -> str:
    """An age, for people."""
    if seconds < 120:
        return f"{seconds:.0f} s ago"
    return f"{seconds / 60:.0f} min ago" if seconds < 7200 else time.strftime("%H:%M", time.localtime(time.time() - seconds))
