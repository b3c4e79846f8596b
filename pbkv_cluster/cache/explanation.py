"""Explains a block to operators: where it lies, what it is worth there, and what would leave each tier before it."""

from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from itertools import islice

from pbkv_cluster.cache.cache import KVCache
from pbkv_cluster.cache.decisions.log import keys_with
from pbkv_cluster.cache.eviction import Rank
from pbkv_cluster.cache.inventory import CachedBlocks, run_of
from pbkv_cluster.cache.tiers.tier import CacheTier
from pbkv_cluster.cache.tree.node import ABSENT, Node
from pbkv_cluster.core.usage import Tier

FOUND_MAX = 16  # blocks that one search finds


class Standing(Enum):
    """Whether a tier can lose a block."""

    CANDIDATE = "candidate"
    IN_USE = "in_use"  # a running step uses it
    NEEDED = "needed"  # by blocks after it that this tier or a faster one holds


@dataclass(slots=True)
class BlockPlace:
    """A block in one tier."""

    tier: Tier
    slot: int
    value: float  # now, on the policy's scale; where the tier evicts by LRU, the time of the last use
    standing: Standing
    is_copy: bool  # a faster tier holds it, too
    by_lru: bool
    ahead: int = 0  # candidates that leave the tier before its run, as they were ranked last
    candidates: int = 0  # runs that can leave the tier


class BlockSearch:
    """Finds blocks by the beginning of their keys. Looks in portions, between which the cache may change."""

    def __init__(self, cache: KVCache, prefix: str) -> None:
        """Args:
        cache: that is searched.
        prefix: of keys in hex, lower case.
        """
        self._nodes = cache.tree.walk()
        self._prefix = prefix
        self.found: dict[bytes, Node] = {}  # by key, at most FOUND_MAX

    def look(self, nodes: int) -> bool:
        """Looks at so many more nodes. False: there are no more, or enough has been found."""
        portion = list(islice(self._nodes, nodes))
        for node in portion:
            if any(node.held):  # otherwise it has left the cache since the walk came upon it
                node.last_key()
                for key in matching(node.keys, self._prefix):
                    self.found[key] = node
                    if len(self.found) == FOUND_MAX:
                        return False
        return len(portion) == nodes


def matching(keys: bytes, prefix: str) -> Iterator[bytes]:
    """Those of some keys, KEY_BYTES each, that begin with a prefix in hex."""
    whole = bytes.fromhex(prefix[: len(prefix) // 2 * 2])
    for key in keys_with(keys, whole):
        if key.hex().startswith(prefix):
            yield key


class BlockExplanation:
    """What is known of one block of a cache. Candidates are counted in portions, between which the cache may change."""

    def __init__(self, cache: KVCache, node: Node, block: int, now: float) -> None:
        """Args:
        cache: that holds it.
        node: of the tree, which has the block.
        block: its index there.
        now: seconds, on the cache's clock.
        """
        self.run: CachedBlocks = run_of(cache, node, now)
        self.places: list[BlockPlace] = []
        self._counts: list[Iterator[bool]] = []
        for tier in cache.tiers:
            if node.holds(tier.index, block):
                place = _place(cache, tier, node, block)
                self.places.append(place)
                if place.standing is Standing.CANDIDATE:
                    self._counts.append(_count(tier, place, _rank(tier, node)))

    def look(self, candidates: int) -> bool:
        """Counts so many more candidates. False: there are no more."""
        while self._counts:
            seen = sum(1 for _ in islice(self._counts[0], candidates))
            if seen == candidates:
                return True
            self._counts.pop(0)
        return False


def _place(cache: KVCache, tier: CacheTier, node: Node, block: int) -> BlockPlace:
    slot = node.slots[tier.index][block]
    assert slot != ABSENT
    if node.refs:
        standing = Standing.IN_USE
    elif cache.tree.is_candidate(node, tier.index):
        standing = Standing.CANDIDATE
    else:
        standing = Standing.NEEDED
    is_copy = node.is_copy(tier.index, block)
    return BlockPlace(tier.kind, slot, _rank(tier, node).value, standing, is_copy, tier.lru_active)


def _rank(tier: CacheTier, node: Node) -> Rank:
    return tier.recency(node) if tier.lru_active else tier.rank(node)


def _count(tier: CacheTier, place: BlockPlace, own: Rank) -> Iterator[bool]:
    """Counts a tier's candidates into a place, one at a time."""
    queue = tier.active_queue
    for entry in queue.snapshot():
        is_counted = queue.counts(entry)
        if is_counted:
            place.candidates += 1
            place.ahead += entry[0] < own
        yield is_counted
