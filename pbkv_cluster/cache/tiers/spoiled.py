"""Takes out of the tiers what did not arrive there. Sound copies of it in other tiers stay."""

from collections.abc import Sequence

from pbkv_cluster.cache.tiers.evictor import Evictor
from pbkv_cluster.cache.tiers.prefetch_ledger import PrefetchLedger
from pbkv_cluster.cache.tiers.tier import CacheTier
from pbkv_cluster.cache.tree.node import GPU, Node, new_slots
from pbkv_cluster.cache.tree.prefix_tree import PrefixTree


class SpoiledBlocks:
    """The blocks of a tree whose slots are in `BlockPool.spoiled`.

    A slower tier loses such a block alone. The GPU, which holds a leading run of each path, loses what follows it there, too.
    A block that no tier holds then is dropped with all that follows it, which nobody could match without it.
    """

    def __init__(self, tree: PrefixTree, tiers: Sequence[CacheTier], evictor: Evictor, ledger: PrefetchLedger) -> None:
        """Args:
        tree: whose blocks they are.
        tiers: from the fastest to the slowest.
        evictor: drops what no tier holds any more.
        ledger: told of prefetched and of staged blocks that are lost.
        """
        self._tree = tree
        self._tiers = tiers
        self._evictor = evictor
        self._ledger = ledger

    def drop(self) -> int:
        """Drops them, but for those on the GPU that running sequences use. It looks at every node: that a copy fails is very
        rare. Returns the blocks that no tier holds any more.
        """
        touched = [node for node in self._tree.walk() if self._unplace(node)]  # parents before their children
        dropped = 0
        for node in reversed(touched):
            kept = next((at for at in range(node.blocks) if not any(node.holds(tier.index, at) for tier in self._tiers)), None)
            if kept is not None:
                dropped += node.blocks - kept
                self._evictor.cut(node, kept, "drop_spoiled")
            self._evictor.note_lost(node)
        self._evictor.decisions["drop_spoiled"] += dropped
        return dropped

    def _unplace(self, node: Node) -> bool:
        """Takes a node's spoiled blocks out of each tier. Returns whether there were any."""
        changed = False
        for tier in self._tiers:
            spoiled, slots = tier.pool.spoiled, node.slots[tier.index]
            lost: Sequence[int] = range(self._sound_on_gpu(node), node.held[GPU])
            if tier.index != GPU:
                lost = [at for at, slot in enumerate(slots) if slot in spoiled] if spoiled else ()
            if not lost:
                continue
            if tier.index == GPU and node.prefetched:
                self._ledger.leaving(node, lost[0], spoiled)
            self._ledger.early.wasted(node)
            self._ledger.staging.leaving(node, tier.index, lost, spoiled)
            gone = new_slots()
            for at in lost:
                gone.extend(self._tree.unplace(node, tier.index, at, at + 1))
            self._evictor.release(tier, gone)
            changed = True
        return changed

    def _sound_on_gpu(self, node: Node) -> int:
        """How many of a node's blocks stay on the GPU."""
        parent = node.parent
        assert parent is not None
        if node.refs:
            return node.held[GPU]
        if not parent.is_root and parent.held[GPU] < parent.blocks:
            return 0
        return min(self._tiers[GPU].pool.sound(node.slots[GPU]), node.held[GPU])
