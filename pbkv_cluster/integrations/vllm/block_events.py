"""vLLM's KV events for the blocks of this engine's region: routers see them as blocks in CPU memory."""

from collections import OrderedDict
from collections.abc import Iterable, Sequence
from typing import Any

from vllm.distributed.kv_events import MEDIUM_CPU, BlockRemoved, BlockStored, KVCacheEvent
from vllm.v1.core.kv_cache_utils import generate_block_hash_extra_keys, maybe_convert_block_hash, to_event_extra_keys

_MAX_KNOWN = 200_000  # blocks; of one that is forgotten, the removal is not told


class BlockEvents:
    """Keeps what events need: vLLM's own hash of each block that is stored."""

    def __init__(self, block_tokens: int) -> None:
        """`block_tokens`: of vLLM's blocks."""
        self._block_tokens = block_tokens
        self._known: OrderedDict[bytes, BlockStored] = OrderedDict()
        self._told: set[bytes] = set()  # of them, those that are in the region as far as events tell
        self._events: list[KVCacheEvent] = []

    def planned(self, request: Any, first: int, keys: Sequence[bytes]) -> None:
        """Blocks of a request that are offered to the store, from its block `first` on."""
        hashes = request.block_hashes
        for number, key in enumerate(keys, first):
            if number >= len(hashes):  # vLLM does not hash it, so nobody could ask for it
                break
            start = number * self._block_tokens
            end = start + self._block_tokens
            lora = request.lora_request
            extra, _ = generate_block_hash_extra_keys(request, start, end, 0)  # such as the salt: whose a block is
            self._known[key] = BlockStored(
                block_hashes=[maybe_convert_block_hash(hashes[number])],
                parent_block_hash=maybe_convert_block_hash(hashes[number - 1]) if number else None,
                token_ids=list(request.all_token_ids[start:end]),
                block_size=self._block_tokens,
                lora_id=lora.adapter_id if lora else None,
                lora_name=lora.name if lora else None,
                medium=MEDIUM_CPU,
                extra_keys=to_event_extra_keys([extra]),
            )
            self._known.move_to_end(key)
        while len(self._known) > _MAX_KNOWN:
            forgotten, _ = self._known.popitem(last=False)
            self._told.discard(forgotten)

    def changed(self, changes: Iterable[tuple[bytes, bool]]) -> None:
        """Blocks that have come to the region (True) or left it, by key and in order."""
        for key, is_stored in changes:
            known = self._known.get(key)
            if known is None:
                continue
            if is_stored:
                if key not in self._told:  # whoever follows the events counts them
                    self._told.add(key)
                    self._events.append(known)
            else:
                del self._known[key]
                self._told.discard(key)
                self._events.append(BlockRemoved(block_hashes=known.block_hashes, medium=MEDIUM_CPU))

    def take(self) -> Iterable[KVCacheEvent]:
        """The events since the last call."""
        taken, self._events = self._events, []
        return taken


def make_block_events(config: Any, block_tokens: int) -> BlockEvents | None:
    """None if vLLM publishes no KV events."""
    events = config.kv_events_config
    return BlockEvents(block_tokens) if events is not None and events.enable_kv_cache_events else None
