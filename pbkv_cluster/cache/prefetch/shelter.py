"""Shelter for what leaves: before host memory drops blocks that open workflows have used, siblings with free slots copy them.

A sheltered block belongs to no workflow of the worker that shelters it. So it is the first to leave there, and takes no room
from anything that the worker keeps for its own steps.
"""

from collections.abc import Iterator
from typing import NamedTuple

from pbkv_cluster.cache.sequence.fetch import Fetcher
from pbkv_cluster.cache.sequence.paths import Paths
from pbkv_cluster.cache.tiers.elsewhere import Elsewhere
from pbkv_cluster.cache.tiers.tiers import Tiers
from pbkv_cluster.cache.tree.node import Node
from pbkv_cluster.cache.tree.prefix_tree import PrefixTree, lineage
from pbkv_cluster.core.clock import Clock
from pbkv_cluster.core.tokens import BLOCK_BYTES
from pbkv_cluster.core.usage import Tier

_NEXT = 64  # blocks that will leave next are looked at: what one long prompt can push out between two looks
_NEXT_SHARE = 4  # at most one in so many of all
_MOST = 256  # blocks that are sheltered at a time


class LeavingPath(NamedTuple):
    """A path whose last blocks would leave host memory next."""

    digest: bytes  # of the namespace
    tokens: bytes  # of all its blocks
    keys: tuple[bytes, ...]  # of those of its blocks that only host memory has


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

    def leaving(self, most_bytes: int) -> list[LeavingPath]:
        """What open workflows have used, would leave host memory and the cache next, and no sibling has.

        Args:
            most_bytes: of all paths' tokens.
        """
        found: list[LeavingPath] = []
        for node in self._next():
            if node.retired or node.leases or self._elsewhere.tiers((node.last_key(),))[:1] == [Tier.SIBLING]:
                continue
            path = list(lineage(node))[::-1]
            most_bytes -= sum(len(part.tokens) for part in path)
            if most_bytes < 0:
                break
            root = path[0].parent
            assert root is not None
            keys = (part.key(block) for part in path for block in range(part.held[0], part.blocks))
            found.append(LeavingPath(root.keys, b"".join(part.tokens for part in path), tuple(keys)))
        return found

    def take_in(self, digest: bytes, tokens: bytes) -> int:
        """Begins to copy what this cache lacks of a path from siblings' host memory to free slots: all of it, or nothing.

        Nothing is copied that takes longer to copy than to compute, nor while other blocks come from siblings.

        Args:
            digest: of the path's namespace.
            tokens: of whole blocks.

        Returns:
            The blocks.
        """
        pool = self._tiers[Tier.HOST].pool
        free = pool.free_slots - len(pool.aside)  # what an earlier process has left may still be found
        root, blocks = self._tree.root_of(digest), len(tokens) // BLOCK_BYTES
        match = self._tree.match(root, tokens)
        matched = sum(node.blocks for node in match.path[:-1]) + match.last_blocks
        missing = blocks - matched
        if not 0 < missing <= min(free, _MOST) or self._tiers.in_flight.reads_from(Tier.SIBLING):
            return 0
        path = self._paths.lock_match(match)
        above = path[-1] if path else root
        kinds, keys = self._fetcher.elsewhere(above, tokens, matched, missing)
        fits = len(kinds) == missing and set(kinds) == {Tier.SIBLING}
        if fits:
            child = self._fetcher.stage(above, tokens, matched, Tier.SIBLING, keys, pool.take(missing))
            self._tiers.log.note("shelter", child, range(missing))
            self._tiers.decisions["shelter"] += missing
            self._tiers.offer(child)
            self._fetcher.staged(child, self._clock.now())
        self._paths.unlock(path)
        return missing if fits else 0

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
