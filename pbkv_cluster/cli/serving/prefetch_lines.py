"""What `pbkv status` says of a worker's prefetches."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pbkv_cluster.rpc.v1 import store_pb2


def prefetch_json(store: "store_pb2.StoreStat") -> dict[str, int] | None:
    """The counts as JSON values: tokens, and bytes; None if the worker's engine prefetches nothing."""
    if not store.HasField("prefetch"):
        return None
    names = ("loaded_tokens", "used_tokens", "wasted_tokens", "cancelled_tokens", "loaded_bytes")
    return {name: getattr(store.prefetch, name) for name in names}


def prefetch_line(stat: "store_pb2.PrefetchStat") -> str:
    """How many tokens a worker has prefetched, and what became of them."""
    ends = ((stat.used_tokens, "used"), (stat.wasted_tokens, "evicted unused"), (stat.cancelled_tokens, "cancelled"))
    parts = ", ".join(f"{100 * tokens / stat.loaded_tokens:.1f} % {what}" for tokens, what in ends)
    return f"prefetched {stat.loaded_tokens:,} tokens ({stat.loaded_bytes / 1e6:,.1f} MB): {parts}"
