"""What one engine holds, by the tokens of its blocks, as its KV events tell.

Engines name blocks by hashes of their own. A stored block comes with its tokens and with the hash of the block before it, so
its whole prefix is known without knowing how the engine hashes. Here a block's *prefix key* is a chained hash over that prefix,
made in the same way for the blocks of every engine and for prompts; the engine's hash only finds the block again when it goes.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple, Protocol

from xxhash import xxh3_128_digest

from pbkv_cluster.core.tokens import TOKEN_BYTES, pack
from pbkv_cluster.store.kv_events.copies import Copies
from pbkv_cluster.store.kv_events.messages import BlockRemoved, BlockStored
from pbkv_cluster.store.kv_events.unknown_blocks import UnknownBlocks

BYTES_A_BLOCK = 350  # of hash, prefix key, and their entries, measured with CPython 3.11
_ON_GPU, _PINNED = 1, 8
_MEDIA = {"GPU": _ON_GPU, "CPU": 2, "CPU_PINNED": _PINNED, "STORAGE": 4, "DISK": 4, "EXTERNAL": 4}
# What an engine empties together: vLLM its GPU, but no tier of a KV connector; SGLang also its own host memory.
_EMPTIED_TOGETHER = (_ON_GPU, _PINNED)
_NO_PREFIX = bytes(16)


class Held(NamedTuple):
    """Leading tokens of a prompt that an engine holds."""

    gpu_tokens: int
    other_tokens: int  # after these, in slower tiers


class BlockEvents(Protocol):
    """What takes the events of an engine, in order."""

    def clear(self) -> None:
        """The engine holds nothing."""
        ...

    def emptied(self) -> bool:
        """The engine says that it has emptied its cache; returns whether it holds nothing then, in slower tiers either."""
        ...

    def stored(self, event: BlockStored) -> None: ...

    def removed(self, event: BlockRemoved) -> None: ...


class EngineBlocks:
    """The blocks of one engine; bounded in bytes. What does not fit is left out, and counted."""

    def __init__(self, max_bytes: int, on_dropped: Callable[[float], None] = lambda share: None) -> None:
        """Args:
        max_bytes: of memory.
        on_dropped: told the share of the engine's blocks that have left its last tier.
        """
        self.unknown = UnknownBlocks()  # for want of room, or since an event was missed or left out
        self.block_tokens = 0  # of a block; 0: none was told of yet
        self._on_dropped = on_dropped
        self._blocks_max = max_bytes // BYTES_A_BLOCK
        self._prefix_keys: dict[bytes, bytes] = {}  # by the engine's hash
        self._copies = Copies()  # by the engine's hash
        self._tiers: dict[bytes, int] = {}  # bits, by prefix key

    def __len__(self) -> int:
        return len(self._prefix_keys)

    @property
    def is_complete(self) -> bool:
        """Whether every block that was told of is here."""
        return not self.unknown

    def clear(self) -> None:
        self.unknown.clear()
        self._prefix_keys.clear()
        self._copies.clear()
        self._tiers.clear()
        self._on_dropped(1.0)

    def emptied(self) -> bool:
        held, dropped = len(self), 0
        for bit in _EMPTIED_TOGETHER:
            dropped += sum(self._left(key, bit) for key in self._copies.drop(bit))
            self.unknown.drop(bit)
        is_empty = not self and not self.unknown
        if is_empty or dropped:
            self._on_dropped(1.0 if is_empty else dropped / held)
        return is_empty

    def stored(self, event: BlockStored) -> None:
        bit = _MEDIA.get(event.medium.upper(), 0)
        if not bit:
            return
        if event.is_by_name:
            named: Iterable[tuple[bytes, bytes]] = [
                (key, self._prefix_keys[key]) for key in event.keys if key in self._prefix_keys
            ]
        else:
            self.block_tokens = event.block_tokens
            named = zip(event.keys, self._named(event, bit), strict=False)
        for key, prefix_key in named:
            self._prefix_keys[key] = prefix_key
            self._copies.add(key, bit)
            self._tiers[prefix_key] = self._tiers.get(prefix_key, 0) | bit

    def removed(self, event: BlockRemoved) -> None:
        bit = _MEDIA.get(event.medium.upper(), 0)
        held, dropped = len(self), 0
        for key in event.keys:
            if self._copies.remove(key, bit):
                dropped += self._left(key, bit)
        if dropped:
            self._on_dropped(dropped / held)

    def _left(self, key: bytes, bit: int) -> bool:
        """No copy of a block is in a tier any more. Returns whether none is in any."""
        prefix_key = self._prefix_keys[key]
        left = self._tiers.get(prefix_key, 0) & ~bit
        if left:
            self._tiers[prefix_key] = left
        else:
            self._tiers.pop(prefix_key, None)
        if self._copies.has(key):
            return False
        del self._prefix_keys[key]
        return True

    def match(self, packed: bytes, first_extra: bytes = b"") -> Held:
        """How much of a prompt the engine holds.

        Args:
            packed: token ids of the prompt.
            first_extra: what distinguishes its first block beside its tokens, see `messages.extra_of`.
        """
        if not self._tiers or not self.block_tokens:
            return Held(0, 0)
        keys = prefix_keys(packed, self.block_tokens, first_extra)
        blocks = self._run(keys, len(keys), -1)
        on_gpu = self._run(keys, blocks, _ON_GPU)
        return Held(on_gpu * self.block_tokens, (blocks - on_gpu) * self.block_tokens)

    def _named(self, event: BlockStored, bit: int) -> Iterator[bytes]:
        """The prefix keys of stored blocks, as far as they are known and there is room.

        A block that is told of again, in another tier, may come without its tokens.
        """
        parent = _NO_PREFIX if event.parent is None else self._prefix_keys.get(event.parent)
        packed, size = pack(event.token_ids), event.block_tokens * TOKEN_BYTES
        for number, key in enumerate(event.keys):
            known = self._prefix_keys.get(key)
            tokens = packed[number * size : (number + 1) * size]
            if known is None and (parent is None or len(tokens) < size):
                self.unknown.orphan(len(event.keys) - number, bit)
                return
            if known is None and len(self) >= self._blocks_max:
                self.unknown.leave_out(len(event.keys) - number, bit)
                return
            extra = event.extra[number] if number < len(event.extra) else b""
            parent = known or _next(parent or _NO_PREFIX, tokens, extra)
            yield parent

    def _run(self, keys: Sequence[bytes], most: int, bits: int) -> int:
        """Length of the leading run in some tiers, at most `most`, by bisection: engines evict a block before its ancestors."""
        low, high = 0, most
        while low < high:
            middle = (low + high + 1) // 2
            if self._tiers.get(keys[middle - 1], 0) & bits:
                low = middle
            else:
                high = middle - 1
        return low


def prefix_keys(packed: bytes, block_tokens: int, first_extra: bytes = b"") -> list[bytes]:
    """The prefix keys of a prompt's full blocks."""
    key, extra, keys = _NO_PREFIX, first_extra, []
    size = block_tokens * TOKEN_BYTES
    for start in range(0, len(packed) - size + 1, size):
        key = _next(key, packed[start : start + size], extra)
        extra = b""
        keys.append(key)
    return keys


def _next(parent: bytes, tokens: bytes, extra: bytes) -> bytes:
    return xxh3_128_digest(parent + tokens + extra)
