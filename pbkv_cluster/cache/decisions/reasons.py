"""Reason codes of a cache's decisions about blocks, and what they mean in words."""

from enum import StrEnum
from typing import NamedTuple


class Kind(StrEnum):
    """What became of the blocks."""

    STORED = "stored"
    KEPT = "kept"
    EVICTED = "evicted"
    DROPPED = "dropped"
    LOADED = "loaded"
    FETCHED = "fetched"
    PREFETCHED = "prefetched"
    REFUSED = "refused"


class Reason(NamedTuple):
    """A reason code in words."""

    kind: Kind
    words: str


_REASONS = {
    "compute": Reason(Kind.STORED, "computed by a step, and entered on the GPU"),
    "restore": Reason(Kind.STORED, "found where an earlier process of the worker had left it"),
    "write_through": Reason(Kind.KEPT, "copied to a slower tier as soon as it was complete"),
    "demote": Reason(Kind.KEPT, "moved from the GPU to the next slower tier, where it was worth its room"),
    "demote_early": Reason(Kind.KEPT, "copied to the next slower tier, as it was next to leave the GPU"),
    "second_copy_skipped": Reason(Kind.REFUSED, "not kept in host memory: another worker of the node has it there"),
    "demote_skipped_slower": Reason(Kind.REFUSED, "not kept in a slower tier: to load it takes longer than to compute it"),
    "evict_active": Reason(Kind.EVICTED, "left the GPU, as what was worth least there"),
    "evict_retired": Reason(Kind.EVICTED, "left the GPU: no active workflow had used it, and it was worth least there"),
    "drop": Reason(Kind.DROPPED, "left the GPU and the cache: no slower tier had room for what is worth so little"),
    "load": Reason(Kind.LOADED, "copied to the GPU for a step that begins with it"),
    "load_skipped_slower": Reason(Kind.REFUSED, "not loaded: to compute it took no longer"),
    "load_late": Reason(Kind.DROPPED, "given up: it did not arrive from the disk within the time to compute it"),
    "fetch": Reason(Kind.FETCHED, "fetched from another worker for a step that begins with it"),
    "fetch_skipped_slower": Reason(Kind.REFUSED, "not fetched from another worker: to compute it took no longer"),
    "fetch_late": Reason(Kind.DROPPED, "given up: it did not arrive from another worker within the time to compute it"),
    "fetch_failed": Reason(Kind.DROPPED, "another worker no longer had it, or it was damaged"),
    "prefetch": Reason(Kind.PREFETCHED, "loaded to the GPU because a client asked for it"),
    "prefetch_fetch": Reason(Kind.PREFETCHED, "fetched to the GPU from another worker because a client asked for it"),
    "prefetch_queue": Reason(Kind.PREFETCHED, "loaded to the GPU because a step that waits begins with it"),
    "prefetch_forecast": Reason(Kind.PREFETCHED, "loaded to the GPU because it is likely to be used soon"),
    "stage_queue": Reason(Kind.PREFETCHED, "brought to host memory because a step that waits begins with it"),
    "stage_forecast": Reason(Kind.PREFETCHED, "brought to host memory because it is likely to be used soon"),
    "stage_request": Reason(Kind.PREFETCHED, "brought to host memory because a client asked for it"),
    "shelter": Reason(
        Kind.PREFETCHED, "copied to free host memory, as it was about to leave that of another worker of the node"
    ),
    "drop_spoiled": Reason(Kind.DROPPED, "its bytes, or those of a block before it, did not arrive"),
    "clear": Reason(Kind.DROPPED, "an operator emptied the cache"),
}
_OF_TIER = {
    "demote": Reason(Kind.KEPT, "moved from {tier} to the next slower tier, where it was worth its room"),
    "demote_skipped_slower": Reason(
        Kind.REFUSED, "not kept in a tier slower than {tier}: to store or load it takes longer than to compute it"
    ),
    "drop_active": Reason(Kind.DROPPED, "left {tier}, as what was worth least there, and no slower tier took it"),
    "drop_retired": Reason(
        Kind.DROPPED, "left {tier}: no active workflow had used it, it was worth least there, and no slower tier took it"
    ),
    "drop_copy": Reason(Kind.EVICTED, "its copy left {tier}: a faster tier has it, too"),
}
_TIERS = {"host": "host memory", "disk": "the disk"}


def reason_of(code: str) -> Reason | None:
    """What a reason code means; None: it is not one of a decision about blocks."""
    found = _REASONS.get(code)
    if found is None:
        tier, _, rest = code.partition("_")
        if tier in _TIERS and rest in _OF_TIER:
            kind, words = _OF_TIER[rest]
            return Reason(kind, words.format(tier=_TIERS[tier]))
    return found
