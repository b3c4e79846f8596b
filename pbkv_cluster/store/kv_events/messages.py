"""KV events and their encoding: what vLLM and SGLang publish, and what routers such as llm-d's read.

A message has three frames: topic, number (8 bytes, big-endian), and a batch in MessagePack: an array of time, events and the
rank of the publisher. An event is a map with a `type`; older publishers write it as an array, the type first.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import msgpack

NUMBER_BYTES = 8
_MIN_TOKEN, _MAX_TOKEN = -(1 << 31), (1 << 31) - 1  # what packed tokens can hold
END = -1  # the number of the last answer to a replay
_STORED, _REMOVED, _CLEARED = "BlockStored", "BlockRemoved", "AllBlocksCleared"
_STORED_FIELDS = ("block_hashes", "parent_block_hash", "token_ids", "block_size", "lora_id", "medium")
_REMOVED_FIELDS = ("block_hashes", "medium")
# Groups of layers in which every block of a prefix is needed to continue it. In others, such as sliding windows, engines keep
# the last ones alone, and their blocks do not tell how long a cached prefix is.
_WHOLE_PREFIX = (None, "full_attention", "mla_attention", "sink_full_attention", "unknown")


class MalformedBatch(ValueError):
    """A message that is not a batch of events."""


@dataclass(frozen=True, slots=True)
class BlockStored:
    """Consecutive blocks have entered a tier.

    vLLM's offloading names some blocks and tells no more of them: only those are understood that are known already.
    """

    keys: Sequence[bytes]
    parent: bytes | None  # key of the block before the first; None: there is none
    token_ids: Sequence[int]
    block_tokens: int  # 0: not told, nor are their tokens
    medium: str
    extra: Sequence[bytes] = ()  # of each block, what distinguishes it beside its tokens: salt, adapter, images; (): not told

    @property
    def is_by_name(self) -> bool:
        """Whether nothing but the names of the blocks is told."""
        return not self.block_tokens


@dataclass(frozen=True, slots=True)
class BlockRemoved:
    """Blocks have left a tier."""

    keys: Sequence[bytes]
    medium: str


@dataclass(frozen=True, slots=True)
class AllBlocksCleared:
    """The publisher holds nothing any more."""


Event = BlockStored | BlockRemoved | AllBlocksCleared


def encode(events: Sequence[Event], time: float, rank: int) -> bytes:
    """A batch.

    Args:
        events: in the order in which they happened.
        time: seconds since the epoch.
        rank: of the publisher.
    """
    return bytes(msgpack.packb([time, [_to_map(event) for event in events], rank]))


def decode(payload: bytes) -> list[Event]:
    """The events of a batch; those of unknown types are left out.

    Raises:
        MalformedBatch: it is none.
    """
    try:
        _, events, *_ = msgpack.unpackb(payload, strict_map_key=False)
        decoded = [_from_wire(event) for event in events]
    except (ValueError, TypeError, KeyError, IndexError, AttributeError, OverflowError, msgpack.UnpackException) as error:
        raise MalformedBatch(f"not a batch of KV events: {error}") from error
    return [event for event in decoded if event is not None]


def number_of(frame: bytes) -> int:
    """The number in a frame.

    Raises:
        MalformedBatch: the frame has another length.
    """
    if len(frame) != NUMBER_BYTES:
        raise MalformedBatch(f"a number has {NUMBER_BYTES} bytes, got {len(frame)}")
    return int.from_bytes(frame, "big", signed=True)


def frame_of(number: int) -> bytes:
    """A number as a frame."""
    return number.to_bytes(NUMBER_BYTES, "big", signed=True)


def _to_map(event: Event) -> dict[str, Any]:
    match event:
        case BlockStored(keys, parent, token_ids, block_tokens, medium):
            return {
                "type": _STORED,
                "block_hashes": list(keys),
                "parent_block_hash": parent,
                "token_ids": list(token_ids),
                "block_size": block_tokens,
                "lora_id": None,
                "medium": medium,
            }
        case BlockRemoved(keys, medium):
            return {"type": _REMOVED, "block_hashes": list(keys), "medium": medium}
        case AllBlocksCleared():
            return {"type": _CLEARED}


def _from_wire(event: Any) -> Event | None:
    if isinstance(event, list):
        kind, *values = event
        names = {_STORED: _STORED_FIELDS, _REMOVED: _REMOVED_FIELDS}.get(kind, ())
        event = {"type": kind, **dict(zip(names, values, strict=False))}
    group = event.get("group_idx") or 0
    match event["type"]:
        case "BlockStored":
            if event.get("kv_cache_spec_kind") not in _WHOLE_PREFIX:
                return None
            parent = event.get("parent_block_hash")
            keys = [_key(each, group) for each in event["block_hashes"]]
            tokens = _tokens(event.get("token_ids"))
            return BlockStored(
                keys,
                None if parent is None else _key(parent, group),
                tokens,
                _block_tokens(event["block_size"], tokens),
                str(event.get("medium") or "GPU"),
                _extra(event, len(keys)),
            )
        case "BlockRemoved":
            return BlockRemoved([_key(each, group) for each in event["block_hashes"]], str(event.get("medium") or "GPU"))
        case "AllBlocksCleared":
            return AllBlocksCleared()
        case _:
            return None


def _tokens(told: Any) -> list[int]:
    tokens = list(told or ())
    if tokens and not (set(map(type, tokens)) == {int} and min(tokens) >= _MIN_TOKEN and max(tokens) <= _MAX_TOKEN):
        raise ValueError("token_ids: must be integers of 32 bits")
    return tokens


def _block_tokens(told: Any, tokens: Sequence[int]) -> int:
    if type(told) is not int or not (1 if tokens else 0) <= told <= _MAX_TOKEN:
        raise ValueError(f"block_size: must be a positive number of tokens, or 0 without tokens, got {told!r}")
    return told


def extra_of(values: Sequence[Any]) -> bytes:
    """What distinguishes a block beside its tokens, as `BlockStored.extra` has it.

    Args:
        values: as vLLM hashes them: the name of an adapter, items of other media, the cache salt; none: nothing does.
    """
    return bytes(msgpack.packb(list(values))) if values else b""


def _extra(event: dict[str, Any], blocks: int) -> Sequence[bytes]:
    """vLLM tells it of each block; earlier versions told the adapter alone, and SGLang tells its salt."""
    if (told := event.get("extra_keys")) is not None:
        return [extra_of(each or ()) for each in told]
    adapter = [name] if (name := event.get("lora_name") or event.get("lora_id")) else []
    salt = [salt] if (salt := event.get("cache_salt")) and event.get("parent_block_hash") is None else []
    found = [extra_of([*adapter, *salt]), *[extra_of(adapter)] * (blocks - 1)][:blocks]
    return found if any(found) else ()


def _key(value: Any, group: int) -> bytes:
    """A block's hash, which some engines write as a number; the same block of another group of layers has another key."""
    key = value if isinstance(value, bytes) else (int(value) & (1 << 64) - 1).to_bytes(8, "big")
    return key + group.to_bytes(2, "big") if group else key
