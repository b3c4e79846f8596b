"""How blocks that follow a cached prefix, and lie with other workers, come to the GPU: for a sequence, or ahead of one."""

from collections.abc import Callable, Iterator, Sequence
from itertools import groupby

from pbkv_cluster.cache.sequence.commit import Committer
from pbkv_cluster.cache.sequence.handle import CacheHandle
from pbkv_cluster.cache.sequence.late_writes import LateWrites
from pbkv_cluster.cache.sequence.paths import Paths
from pbkv_cluster.cache.sequence.stored_blocks import StoredBlocks
from pbkv_cluster.cache.tiers.elsewhere import Elsewhere
from pbkv_cluster.cache.tiers.prefetch_ledger import PrefetchSource
from pbkv_cluster.cache.tiers.tiers import Tiers
from pbkv_cluster.cache.tiers.transfer import Transfer
from pbkv_cluster.cache.tree.node import Node, Slots
from pbkv_cluster.cache.tree.prefix_tree import PrefixTree
from pbkv_cluster.core.blocks import BlockLabel, chain_keys
from pbkv_cluster.core.tokens import BLOCK_BYTES, BLOCK_TOKENS
from pbkv_cluster.core.usage import Tier

# Of a fetch, if computing would take less or more.
PATIENCE_MIN_S, PATIENCE_MAX_S = 0.5, 10.0


class Fetcher:
    """Fetches blocks to the GPU, where that is faster than to compute them.

    They enter the tree at once, as if they had been computed, with slots that arrive: who matches them meanwhile waits for the
    same transfer. Blocks that do not arrive, or not in about the time that it takes to compute them, are dropped, and computed.
    """

    def __init__(
        self,
        tree: PrefixTree,
        tiers: Tiers,
        paths: Paths,
        committer: Committer,
        late_writes: LateWrites,
        stored: StoredBlocks,
        elsewhere: Elsewhere,
        compute_seconds: Callable[[int], float],
    ) -> None:
        """Args:
        tree: that takes blocks which no sequence has asked for yet.
        tiers: that take the blocks.
        paths: of the tree.
        committer: enters them in the tree.
        late_writes: copies them to slower tiers when they have arrived.
        stored: blocks of an earlier process, some of which may follow those that are fetched.
        elsewhere: knows where they are.
        compute_seconds: how long the prefill of a number of tokens takes.
        """
        self._tree = tree
        self._tiers = tiers
        self._paths = paths
        self._committer = committer
        self._late_writes = late_writes
        self._stored = stored
        self._elsewhere = elsewhere
        self._compute_seconds = compute_seconds

    def fetch(self, handle: CacheHandle, tokens: bytes, usable: int, ahead: int, now: float) -> dict[Tier, int]:
        """Begins to fetch what follows the blocks in a handle's table, which must be committed.

        Args:
            handle: that there is room on the GPU for.
            tokens: of the sequence.
            usable: blocks of the sequence that may come from elsewhere than from computing.
            ahead: tokens that are to be computed before those of this sequence.
            now: seconds.

        Returns:
            The blocks that are fetched, by kind of memory.
        """
        start = handle.committed
        keys: list[bytes] = []
        node = handle.table.node
        found = self._elsewhere.tiers(_keys(node, start, tokens, usable, keys))
        kinds = self._worth_fetching(found, ahead)
        self._tiers.log.note_keys("fetch_skipped_slower", keys[len(kinds) : len(found)])
        if not kinds:
            return {}
        slots = self._tiers.take(len(kinds))
        assert slots is not None, "room was checked"
        stop = start + len(kinds)
        transfers = self._submit(kinds, slots, _labels(node, start, tokens, keys[: len(kinds)]), ahead)
        self._late_writes.add(node, tokens[: stop * BLOCK_BYTES], start, transfers)
        handle.table.extend(slots)
        self._committer.commit(handle, tokens, stop, now, "fetch")
        self._tiers.decisions["fetch"] += len(kinds)
        return {kind: kinds.count(kind) for kind in dict.fromkeys(kinds)}

    def prefetch(self, node: Node, tokens: bytes, start: int, now: float) -> dict[Tier, int]:
        """Begins to fetch what follows a locked node, or a root, into free space and that of retired blocks.

        Args:
            node: that the GPU holds with all above it, and the last that is cached of the prompt.
            tokens: of the prompt.
            start: blocks of it down to the end of the node.
            now: seconds.

        Returns:
            The blocks that are fetched, by kind of memory. No workflow has used them yet.
        """
        keys: list[bytes] = []
        found = self._elsewhere.tiers(_keys(node, start, tokens, len(tokens) // BLOCK_BYTES, keys))
        kinds = self._worth_fetching(found, 0)
        slots = self._tiers.take(len(kinds), retired_only=True) if kinds else None
        if not slots:
            return {}
        kinds = kinds[: len(slots)]
        stop = start + len(kinds)
        transfers = self._submit(kinds, slots, _labels(node, start, tokens, keys[: len(kinds)]), 0, urgent=False)
        self._late_writes.add(node, tokens[: stop * BLOCK_BYTES], start, transfers)
        child = self._tree.add_child(node, tokens[start * BLOCK_BYTES : stop * BLOCK_BYTES], slots, output=False)
        self._paths.expect(child, now)
        self._tiers.log.note("prefetch_fetch", child, range(child.blocks))
        self._tiers.prefetched.loaded(child, child.blocks, PrefetchSource.REQUEST)
        self._tiers.note(child, 0, child.blocks)
        self._tiers.offer(child)
        self._tiers.decisions["prefetch_fetch"] += child.blocks
        self._stored.follow(child, 0, child.blocks, now)
        return {kind: kinds.count(kind) for kind in dict.fromkeys(kinds)}

    def elsewhere(
        self, node: Node, tokens: bytes, start: int, most: int, counts: bool = True
    ) -> tuple[Sequence[Tier], list[bytes]]:
        """What follows a node, or a root, with other workers, and is worth fetching.

        Args:
            node: the last that is cached of a prompt.
            tokens: of the prompt.
            start: blocks of it down to the end of the node.
            most: blocks that are looked for.
            counts: whether blocks that are not worth it are counted.

        Returns:
            Kinds of memory, and keys, of the next blocks.
        """
        keys: list[bytes] = []
        found = self._elsewhere.tiers(_keys(node, start, tokens, min(len(tokens) // BLOCK_BYTES, start + most), keys))
        kinds = self._worth_fetching(found, 0, counts)
        return kinds, keys[: len(kinds)]

    def stage(
        self,
        node: Node,
        tokens: bytes,
        start: int,
        kind: Tier,
        keys: Sequence[bytes],
        slots: Slots,
        sheltered: bool = False,
    ) -> Node:
        """Begins to bring what follows a locked node, or a root, to host memory.

        Args:
            node: the last that is cached of a prompt.
            tokens: of the prompt.
            start: blocks of it down to the end of the node.
            kind: of memory in which the blocks lie.
            keys: of the blocks.
            slots: of host memory, as many.
            sheltered: whether they are brought there for another worker.

        Returns:
            The node of the blocks, which nobody owns yet.
        """
        host, stop = self._tiers[Tier.HOST], start + len(keys)
        labels = _labels(node, start, tokens, keys)
        self._tiers.in_flight.fetch(kind, slots, labels, PATIENCE_MAX_S, urgent=False, target=Tier.HOST)
        child = self._tree.add_stored(node, tokens[start * BLOCK_BYTES : stop * BLOCK_BYTES], b"".join(keys))
        child.sheltered = sheltered
        self._tree.place(child, host.index, 0, slots)
        self._tiers.note(child, 0, child.blocks)
        return child

    def staged(self, node: Node, now: float) -> None:
        """A node that is being staged is complete, and may be split: what follows its blocks can be matched, too."""
        self._stored.follow(node, 0, node.blocks, now)

    def patience_s(self, tokens: int) -> float:
        """Seconds for which a step waits for blocks of other workers, instead of computing so many tokens."""
        return max(PATIENCE_MIN_S, min(self._compute_seconds(tokens), PATIENCE_MAX_S))

    def _submit(
        self, kinds: Sequence[Tier], slots: Slots, labels: Sequence[BlockLabel], ahead: int, urgent: bool = True
    ) -> list[Transfer]:
        at, transfers = 0, list[Transfer]()
        for kind, run in groupby(kinds):
            stop = at + len(list(run))
            patience_s = self.patience_s(ahead + stop * BLOCK_TOKENS)
            transfers.append(self._tiers.in_flight.fetch(kind, slots[at:stop], labels[at:stop], patience_s, urgent))
            at = stop
        return transfers

    def _worth_fetching(self, kinds: Sequence[Tier], ahead: int, counts: bool = True) -> Sequence[Tier]:
        """As many of the first blocks as are faster to fetch than to compute; of fewer, half as many are tried each time."""
        blocks = len(kinds)
        while blocks:
            by_kind = {kind: kinds[:blocks].count(kind) for kind in dict.fromkeys(kinds[:blocks])}
            if self._tiers.costs.pays(by_kind, blocks, ahead):
                break
            run = next((at for at in range(1, blocks) if kinds[blocks - 1 - at] is not kinds[blocks - 1]), blocks)
            blocks -= (run + 1) // 2
        if counts and blocks < len(kinds):
            self._tiers.decisions["fetch_skipped_slower"] += len(kinds) - blocks
        return kinds[:blocks]


def _keys(node: Node, start: int, tokens: bytes, stop: int, keys: list[bytes]) -> Iterator[bytes]:
    """The keys of blocks from `start`, which follow a node, to `stop`, each also added to `keys`."""
    key = node.last_key()
    for block in range(start, stop):
        (key,) = chain_keys(key, tokens[block * BLOCK_BYTES : (block + 1) * BLOCK_BYTES])
        keys.append(key)
        yield key


def _labels(node: Node, start: int, tokens: bytes, keys: Sequence[bytes]) -> list[BlockLabel]:
    """Of the blocks from `start`, which follow a node."""
    parent = node.last_key()
    while node.parent is not None:
        node = node.parent
    labels = []
    for block, key in enumerate(keys, start):
        labels.append(BlockLabel(node.keys, parent, key, tokens[block * BLOCK_BYTES : (block + 1) * BLOCK_BYTES]))
        parent = key
    return labels
