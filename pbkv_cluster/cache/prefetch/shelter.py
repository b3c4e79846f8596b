"""Shelter for what leaves: before host memory drops blocks that open workflows have used, siblings with free slots copy them.

A sheltered block belongs to no workflow of the worker that shelters it. So it is the first to leave there, and takes no room
from anything that the worker keeps for its own steps.
"""

from collections.abc import Iterable, Iterator
from enum import IntEnum
from typing import NamedTuple

from pbkv_cluster.cache.sequence.fetch import Fetcher
from pbkv_cluster.cache.sequence.paths import Paths
from pbkv_cluster.cache.tiers.elsewhere import Elsewhere
from pbkv_cluster.cache.tiers.tiers import Tiers
from pbkv_cluster.cache.tree.node import Node
from pbkv_cluster.cache.tree.prefix_tree import PrefixTree, lineage
from pbkv_cluster.core.blocks import chain_keys
from pbkv_cluster.core.clock import Clock
from pbkv_cluster.core.tokens import BLOCK_BYTES
from pbkv_cluster.core.usage import Tier

PATHS_BYTES = 1 << 20  # of tokens that are named at a time
_NEXT = 64  # blocks that will leave next are looked at: what one long prompt can push out between two looks
_NEXT_SHARE = 4  # at most one in so many of all
MOST = 32  # blocks that are copied at a time; a step that needs other blocks from there waits for them
MOST_S = 0.01  # that they may take, once that has been measured
_LEFT_FREE = 8  # one in so many slots: the worker's own blocks go there, and need not wait until what is copied has arrived


class LeavingPath(NamedTuple):
    """A path whose last blocks would leave host memory next."""

    digest: bytes  # of the namespace
    tokens: bytes  # of all its blocks
    first: int  # number of the first block from which on host memory has all of them


class ShelterState(IntEnum):
    """Whether it is worth asking again, the best last."""

    FULL = 0  # no path fits
    HELD = 1  # it holds a path already, of which not everybody has heard
    COPYING = 2  # it is copying blocks of siblings, and there may be room for more


class Taken(NamedTuple):
    """What a worker takes in."""

    blocks: int
    state: ShelterState


_NOTHING = Taken(0, ShelterState.FULL)


class Shelter:
    """Both sides of it, for one cache: what is about to leave, and what is taken in. The engine's thread asks."""

    def __init__(
        self, tree: PrefixTree, tiers: Tiers, paths: Paths, fetcher: Fetcher, elsewhere: Elsewhere, clock: Clock
    ) -> None:
        """Args:
        tree: of the cache.
        tiers: of its blocks.
        paths: of the tree.
        fetcher: gets blocks from other workers.
        elsewhere: knows what they have.
        clock: the cache's.
        """
        self._tree = tree
        self._tiers = tiers
        self._paths = paths
        self._fetcher = fetcher
        self._elsewhere = elsewhere
        self._clock = clock

    def leaving(self) -> list[LeavingPath]:
        """What open workflows have used, would leave host memory and the cache next, and no sibling has."""
        found: list[LeavingPath] = []
        room = PATHS_BYTES
        for node in self._next():
            if node.retired or node.leases or self._elsewhere.tiers((node.last_key(),))[:1] == [Tier.SIBLING]:
                continue
            path = list(lineage(node))[::-1]
            size = sum(len(part.tokens) for part in path)
            if size > room:
                continue
            room -= size
            root = path[0].parent
            assert root is not None
            found.append(LeavingPath(root.keys, b"".join(part.tokens for part in path), self._first(path)))
        return found

    def take_in(self, paths: Iterable[LeavingPath]) -> Taken:
        """Begins to copy what this cache lacks of some paths from siblings' host memory to free slots, if they have enough for
        the whole of a path: the next blocks of the first such path. What is left can be asked for again.

        Nothing is copied that takes longer to copy than to compute, nor while other blocks come from siblings.
        """
        state = ShelterState.FULL
        for path in paths:
            taken = self._take_in(path)
            if taken.blocks:
                return taken
            state = max(state, taken.state)
        return Taken(0, state)

    def _take_in(self, leaving: LeavingPath) -> Taken:
        pool = self._tiers[Tier.HOST].pool
        free = pool.free_slots - len(pool.aside) - pool.capacity // _LEFT_FREE  # `aside`: an earlier process's may be found yet
        blocks = len(leaving.tokens) // BLOCK_BYTES
        root = self._tree.known_root(leaving.digest)
        match = None if root is None else self._tree.match(root, leaving.tokens)
        matched, key = 0, leaving.digest
        if match is not None and match.path:
            matched = sum(node.blocks for node in match.path[:-1]) + match.last_blocks
            key = match.path[-1].key(match.last_blocks - 1)
        if matched == blocks:
            return Taken(0, ShelterState.HELD)
        following = chain_keys(key, leaving.tokens[matched * BLOCK_BYTES : (matched + 1) * BLOCK_BYTES])
        if blocks - matched > free or matched < leaving.first or self._elsewhere.tiers(following)[:1] != [Tier.SIBLING]:
            return _NOTHING
        if self._tiers.in_flight.reads_from(Tier.SIBLING):
            return Taken(0, ShelterState.COPYING)
        path = [] if match is None else self._paths.lock_match(match)
        try:
            above = path[-1] if path else self._tree.root_of(leaving.digest)
            taken = self._stage(above, leaving.tokens, matched, min(self._at_a_time(), blocks - matched))
            return Taken(taken, ShelterState.COPYING) if taken else _NOTHING
        finally:
            self._paths.unlock(path)

    def _stage(self, above: Node, tokens: bytes, start: int, most: int) -> int:
        kinds, keys = self._fetcher.elsewhere(above, tokens, start, most, counts=False)
        count = next((at for at, kind in enumerate(kinds) if kind is not Tier.SIBLING), len(kinds))
        if count:
            slots = self._tiers[Tier.HOST].pool.take(count)
            child = self._fetcher.stage(above, tokens, start, Tier.SIBLING, keys[:count], slots, sheltered=True)
            self._tiers.log.note("shelter", child, range(count))
            self._tiers.decisions["shelter"] += count
            self._tiers.offer(child)
            self._fetcher.staged(child, self._clock.now())
        return count

    def _at_a_time(self) -> int:
        """Blocks."""
        seconds = self._tiers.costs.copy_seconds
        block_s = seconds(Tier.SIBLING, Tier.HOST, 1) - seconds(Tier.SIBLING, Tier.HOST, 0)
        return max(1, min(MOST, int(MOST_S / block_s))) if block_s > 0 else MOST

    def _first(self, path: list[Node]) -> int:
        """See `LeavingPath.first`."""
        host, first = self._tiers[Tier.HOST].index, sum(node.blocks for node in path)
        for node in reversed(path):
            for block in reversed(range(node.blocks)):
                if not node.holds(host, block):
                    return first
                first -= 1
        return first

    def _next(self) -> Iterator[Node]:
        """Nodes whose blocks host memory would drop next, in that order. None while there is room, or a disk to take them."""
        host = self._tiers[Tier.HOST]
        looked_at = min(_NEXT, host.pool.capacity // _NEXT_SHARE) - host.pool.room
        if host.slower is not None or looked_at <= 0:
            return
        for node, _ in host.active_queue.in_order():
            if not (copies := node.copies(host.index)):
                yield node
            looked_at -= copies or node.held[host.index]
            if looked_at <= 0:
                return
