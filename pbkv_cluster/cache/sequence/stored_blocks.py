"""Rebuilds the prefix tree from blocks that slower tiers have kept while the process was away."""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import groupby

from pbkv_cluster.cache.sequence.paths import Paths
from pbkv_cluster.cache.tiers.tiers import Tiers
from pbkv_cluster.cache.tree.node import ABSENT, NO_SLOTS, Node, Slots, new_slots
from pbkv_cluster.cache.tree.prefix_tree import PrefixTree
from pbkv_cluster.core.blocks import BlockLabel, StoredBlock
from pbkv_cluster.core.tokens import BLOCK_BYTES
from pbkv_cluster.core.usage import Tier


class StoredBlocks:
    """Blocks of an earlier process.

    Those whose path is complete enter the tree at once. What only the GPU had is lost, and nobody can match what follows it,
    so its slots are as good as free, and are taken last (`BlockPool.set_aside`). When a step has computed what was lost, those
    that are still there enter the tree, too.
    """

    def __init__(self, tree: PrefixTree, tiers: Tiers, paths: Paths) -> None:
        """Args:
        tree: that the blocks enter.
        tiers: in which they lie.
        paths: of the tree.
        """
        self._tree = tree
        self._tiers = tiers
        self._paths = paths
        self._entered: dict[Tier, Slots] = {}  # slots that are the tree's, and not withdrawn from their pools yet
        self._found: dict[bytes, dict[Tier, StoredBlock]] = {}  # not in the tree: by key
        self._following: dict[bytes, list[BlockLabel]] = {}  # not in the tree: by the key of the block, or root, before them

    def restore(self, blocks: Mapping[Tier, Iterable[StoredBlock]], now: float) -> int:
        """Enters blocks in an empty cache.

        Args:
            blocks: that slower tiers have, in any order; their slots are free.
            now: seconds.

        Returns:
            The blocks that can be matched now; one in two tiers is counted once.
        """
        self._found = found = _newest(blocks)
        following = defaultdict(list)
        for by_tier in found.values():
            label = next(iter(by_tier.values())).label
            following[label.parent].append(label)
        self._following = dict(following)
        for kind in blocks:
            slots = (by_tier[kind].slot for by_tier in found.values() if kind in by_tier)
            self._tiers[kind].pool.set_aside(new_slots(slots))
        namespaces = {label.namespace for labels in self._following.values() for label in labels}
        entered = sum(self._enter_after(self._tree.root_of(digest), digest, now) for digest in namespaces)
        self._settle()
        return entered

    def clear(self) -> None:
        """Forgets those that are not in the tree."""
        self._following, self._found = {}, {}
        for tier in self._tiers:
            tier.pool.set_aside(NO_SLOTS)

    def follow(self, node: Node, start: int, stop: int, now: float) -> int:
        """Enters what follows blocks of a node that have just entered the tree themselves.

        Args:
            node: which may be split.
            start, stop: its blocks from the one to before the other.
            now: seconds.

        Returns:
            The blocks that can be matched now, and could not before.
        """
        if not self._following:
            return 0
        entered = 0
        for block in reversed(range(start, stop)):  # a split leaves the blocks before it in the upper part
            key = node.key(block)
            if key not in self._following:
                continue
            if block + 1 == node.blocks:
                entered += self._enter_after(node, key, now)
                continue
            after = node.tokens[(block + 1) * BLOCK_BYTES : (block + 2) * BLOCK_BYTES]
            self._following[key] = [label for label in self._following[key] if label.tokens != after]  # it is there already
            if any(self._places(label) for label in self._following[key]):
                node = self._paths.split(node, block + 1)
                entered += self._enter_after(node, key, now)
        self._settle()
        return entered

    def _enter_after(self, parent: Node, key: bytes, now: float) -> int:
        """Enters all that follows the last block of a node, which has this key, or a root."""
        labels = self._following.pop(key, [])
        stack = [(parent, label) for label in labels if label.tokens not in parent.children]
        entered = 0
        while stack:
            parent, label = stack.pop()
            run, following = list[BlockLabel](), [label]
            while len(following) == 1 and self._places(following[0]):
                run += following
                following = self._following.pop(run[-1].key, [])
            if not run:
                continue  # its slots have been taken; what follows it may still be there
            node = self._enter(parent, run, now)
            entered += node.blocks
            if len(following) == 1:
                self._following[run[-1].key] = following  # likewise
            else:
                stack += [(node, each) for each in following]
        return entered

    def _enter(self, parent: Node, run: Sequence[BlockLabel], now: float) -> Node:
        node = self._tree.add_stored(parent, b"".join(each.tokens for each in run), b"".join(each.key for each in run))
        places = [self._places(each) for each in run]
        for each in run:
            del self._found[each.key]
        for tier in self._tiers:
            slots = [by_tier[tier.kind].slot if tier.kind in by_tier else ABSENT for by_tier in places]
            for start, held in _runs(slots):
                self._entered.setdefault(tier.kind, new_slots()).extend(held)
                self._tree.place(node, tier.index, start, held)
        node.last_access = now - min(block.age_s for by_tier in places for block in by_tier.values())
        self._tiers.offer(node)
        self._tiers.offer(parent)
        self._tiers.note(node, 0, node.blocks)
        self._tiers.log.note("restore", node, range(node.blocks))
        self._tiers.decisions["restore"] += node.blocks
        return node

    def _settle(self) -> None:
        """Withdraws the slots that are the tree's now, and forgets the rest if none of it can ever be found."""
        for kind, slots in self._entered.items():
            self._tiers[kind].pool.withdraw(slots)
        self._entered.clear()
        if not self._following or not any(tier.pool.aside for tier in self._tiers):
            self.clear()

    def _places(self, label: BlockLabel) -> Mapping[Tier, StoredBlock]:
        """Where a block that is not in the tree still lies."""
        by_tier = self._found[label.key]
        return {kind: block for kind, block in by_tier.items() if block.slot in self._tiers[kind].pool.aside}


def _newest(blocks: Mapping[Tier, Iterable[StoredBlock]]) -> dict[bytes, dict[Tier, StoredBlock]]:
    """The newest copy of each block in each tier, by key; what has a wrong label is left out."""
    found: dict[bytes, dict[Tier, StoredBlock]] = defaultdict(dict)
    for kind, stored in blocks.items():
        for block in stored:
            if block.label.is_consistent:
                known = found[block.label.key].get(kind)
                if known is None or block.age_s < known.age_s:
                    found[block.label.key][kind] = block
    return found


def _runs(slots: Sequence[int]) -> Iterator[tuple[int, Slots]]:
    """The slots that are not ABSENT, in runs without a gap: index of the first of each, and the slots."""
    start = 0
    for exists, some in groupby(slots, key=lambda slot: slot != ABSENT):
        run = new_slots(some)
        if exists:
            yield start, run
        start += len(run)
