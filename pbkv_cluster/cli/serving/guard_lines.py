"""What the guard of a worker's cache has seen and done, for people and as JSON values."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pbkv_cluster.rpc.v1 import store_pb2


def guard_json(store: "store_pb2.StoreStat") -> dict[str, int | float | bool] | None:
    if not store.HasField("guard"):
        return None
    guard = store.guard
    found: dict[str, int | float | bool] = {
        "lru_active": guard.lru_active,
        "switches": guard.switches,
        "prompt_tokens": guard.prompt_tokens,
        "saved_s": guard.saved_s,
        "evicted_by_lru": guard.evicted_by_lru,
        "evicted_by_policy": guard.evicted_by_policy,
    }
    for name, hits in (("hit", guard.hits), ("lru_hit", guard.lru_hits), ("policy_shadow_hit", guard.policy_hits)):
        found |= {f"{name}_tokens": hits.tokens, f"{name}_gpu_tokens": hits.gpu_tokens}
    return found


def guard_line(guard: "store_pb2.GuardStat") -> str:
    """Whether a worker's guard follows the policy or LRU, what all tiers and the GPU had, and what each would have had."""
    state = "the policy costs more than LRU, so LRU evicts" if guard.lru_active else "follows the policy"
    if not guard.prompt_tokens:
        return f"guard: {state}"
    own, lru, policy = (
        f"{100 * hits.tokens / guard.prompt_tokens:.1f} % ({100 * hits.gpu_tokens / guard.prompt_tokens:.1f} % on the GPU)"
        for hits in (guard.hits, guard.lru_hits, guard.policy_hits)
    )
    return (
        f"guard: {state}; of {guard.prompt_tokens:,} prompt tokens the cache had {own}; "
        f"LRU would have had {lru}, the policy {policy}; {guard.saved_s:+,.1f} s saved over LRU"
    )
