"""Takes blocks out of a tier: into the next slower one where they are worth it there, else out of the cache."""

from collections.abc import Callable, Sequence

from pbkv_cluster.cache.decisions.log import DecisionLog
from pbkv_cluster.cache.eviction import Rank
from pbkv_cluster.cache.tiers.elsewhere import NOWHERE, Elsewhere
from pbkv_cluster.cache.tiers.in_flight import TransfersInFlight
from pbkv_cluster.cache.tiers.order import EvictionOrder
from pbkv_cluster.cache.tiers.prefetch_ledger import PrefetchLedger
from pbkv_cluster.cache.tiers.tier import CacheTier
from pbkv_cluster.cache.tree.node import ABSENT, GPU, Node, Slots, new_slots
from pbkv_cluster.cache.tree.prefix_tree import PrefixTree

_HOT_OWNERS = 2  # active workflows


class Evictor:
    """Evicts, demotes and drops blocks of given nodes. Which nodes these are on the GPU is decided by `Tiers`."""

    def __init__(
        self,
        tree: PrefixTree,
        tiers: Sequence[CacheTier],
        order: EvictionOrder,
        in_flight: TransfersInFlight,
        announce: Callable[[Node, int, int], None],
        pays: Callable[[CacheTier, CacheTier, int], bool],
        labelled: bool,
        elsewhere: Elsewhere,
        ledger: PrefetchLedger,
        log: DecisionLog,
    ) -> None:
        """Args:
        tree: whose blocks lie in the tiers.
        tiers: from the fastest to the slowest.
        order: told of nodes that become candidates or change in size.
        in_flight: takes the demotions.
        announce: told of the blocks of a node whose tiers have changed.
        pays: whether so many blocks may be demoted from one tier to another.
        labelled: whether copies to slower tiers are to carry labels.
        elsewhere: what other workers hold, and this one need not keep as well.
        ledger: told of prefetched blocks that leave the GPU.
        log: told of every decision.
        """
        self._tree = tree
        self._tiers = tiers
        self._order = order
        self._in_flight = in_flight
        self._announce = announce
        self._pays = pays
        self._labelled = labelled
        self._elsewhere = elsewhere
        self._ledger = ledger
        self._log = log
        self.decisions = in_flight.decisions

    def evict(self, tier: CacheTier, node: Node, wanted: int, rank: Rank, waits: bool = True) -> Slots:
        """Takes up to `wanted` of a node's blocks out of a tier, the last ones first.

        If faster tiers hold some of them as well, only such copies are taken. Other blocks go to the slower tier if they are
        worth it there, and are dropped if not. `rank` is the node's in the tier, which made it the victim. Without `waits`,
        only those leave that need not wait for a slot of a slower tier.

        Returns:
            The slots, to be released once the demotions have been submitted.
        """
        if tier.index == GPU:
            stop = node.held[GPU]
            blocks: Sequence[int] = range(stop - wanted if stop > wanted else 0, stop)
        elif copies := node.copies(tier.index):
            return self._evict_copies(tier, node, min(wanted, copies), rank)
        else:
            held = node.slots[tier.index]
            blocks = [block for block in range(node.blocks) if held[block] != ABSENT][-wanted:]
        if not waits and not (blocks := self.free_to_leave(tier, node, blocks)):
            return new_slots()
        if tier.index == GPU:
            if node.prefetched:
                self._ledger.leaving(node, blocks[0], tier.pool.spoiled)
            self._ledger.early.left(node, len(blocks))
        codes, retired = tier.codes, node.retired
        if codes.evict:
            self.decisions[codes.evict[retired]] += len(blocks)
            self._log.note(codes.evict[retired], node, blocks, rank, tier.lru_active)
        homeless = blocks if tier.slower is None else self.copy_down(tier, tier.slower, node, blocks, codes.demote, rank, waits)
        stop = blocks[-1] + 1
        self._ledger.staging.leaving(node, tier.index, blocks, tier.pool.spoiled)
        slots = self._tree.unplace(node, tier.index, blocks[0], stop)
        if not homeless or homeless[0] > blocks[0]:
            self._announce(node, blocks[0], homeless[0] if homeless else stop)
        if homeless:
            self.decisions[codes.drop[retired]] += len(homeless)
            self.cut(node, homeless[0], codes.drop[retired], rank)
        self._settle(node)
        return slots

    def free_to_leave(self, tier: CacheTier, node: Node, blocks: Sequence[int], stay: bool = False) -> Sequence[int]:
        """Makes room in the slower tier for blocks of a node. Returns the last, as many as need not wait for a slot there.
        If they `stay` in this tier, too, what follows them in the node is still of use, and does not make room.
        """
        copied = node.last_copies(tier.index, blocks)
        if tier.slower is None or not copied or not self._pays(tier, tier.slower, len(copied)):
            return blocks
        self._make_room(tier.slower, node, copied, waits=False, stay=stay)
        pool = tier.slower.pool
        if min(len(copied), pool.room) <= pool.free_slots:
            return blocks
        stays = copied[len(copied) - pool.free_slots - 1]
        return [block for block in blocks if block > stays]

    def _evict_copies(self, tier: CacheTier, node: Node, wanted: int, rank: Rank) -> Slots:
        self.decisions[tier.codes.drop_copy] += wanted
        self._ledger.early.wasted(node)
        stop = node.blocks if any(node.held[1 : tier.index]) else node.held[GPU]  # beyond it there are none
        slots, block, gone = new_slots(), stop, list[int]()
        while len(slots) < wanted:
            block -= 1
            if node.is_copy(tier.index, block):
                slots.extend(self._tree.unplace(node, tier.index, block, block + 1))
                gone.append(block)
        self._log.note(tier.codes.drop_copy, node, gone[::-1], rank, tier.lru_active)
        self._announce(node, block, stop)
        self._settle(node)
        return slots

    def write_through(self, tier: CacheTier, node: Node, blocks: Sequence[int]) -> None:
        """Copies blocks of a node to all slower tiers while they stay in this one, where that is worth it."""
        while tier.slower is not None:
            self.copy_down(tier, tier.slower, node, blocks, "write_through")
            self.submit_demotions(tier)
            tier = tier.slower
            blocks = [block for block in blocks if node.holds(tier.index, block)]

    def copy_down(
        self,
        tier: CacheTier,
        slower: CacheTier,
        node: Node,
        blocks: Sequence[int],
        reason: str,
        rank: Rank | None = None,
        waits: bool = True,
    ) -> Sequence[int]:
        """Plans copies to the slower tier of blocks that no slower tier holds yet, where that is worth it.

        Blocks that are still on their way from other workers, and those after them, are not copied: the copy would come after
        the fetch, and whoever needs the room would wait for both.

        Returns:
            The blocks that no slower tier holds or will hold.
        """
        pool = slower.pool
        arrived = tier.pool.fetched(node.slots[tier.index], blocks)
        blocks, late = blocks[:arrived], blocks[arrived:]
        kept, near = self._without_second_copies(node, node.last_copies(tier.index, blocks))
        homeless = kept[:0]
        if kept and not self._pays(tier, slower, len(kept)):
            self.decisions[tier.codes.demote_skipped] += len(kept)
            self._log.note(tier.codes.demote_skipped, node, kept, rank, tier.lru_active)
            return [*kept, *near, *late]
        if pool.room < len(kept):
            self._make_room(slower, node, kept, waits)
            kept = node.last_copies(tier.index, blocks)  # again: copies further down may have had to go
            kept = kept[: len(kept) - len(near)]
        if pool.free_slots < len(kept):
            self._in_flight.wait_for_slots(pool, min(len(kept), pool.room))
            kept, homeless = kept[: pool.free_slots], kept[pool.free_slots :]
        count = len(kept)
        self.decisions[reason] += count
        if not count:
            return [*homeless, *near, *late]
        self._log.note(reason, node, kept, rank, tier.lru_active)
        slots, sources = pool.take(count), node.slots[tier.index]
        if tier.dropped:
            tier.dropped.difference_update(slots)
        if self._labelled:
            tier.labels.update(zip(slots, node.labels(kept), strict=True))
        first, last = kept[0], kept[-1]
        if last - first == count - 1:
            tier.demotions.update(zip(slots, sources[first : last + 1], strict=True))
            self._tree.place(node, slower.index, first, slots)
        else:
            for block, slot in zip(kept, slots, strict=True):
                tier.demotions[slot] = sources[block]
                self._tree.place(node, slower.index, block, new_slots((slot,)))
        return [*homeless, *near, *late]

    def _without_second_copies(self, node: Node, blocks: Sequence[int]) -> tuple[Sequence[int], Sequence[int]]:
        """Blocks that are to be copied to host memory, and those that need not be: another worker of the node has them there.

        Only blocks at the end of a path are left out, since what follows a block cannot be matched without it; and none that
        several active workflows have used or that are leased, which are worth a copy of this worker's own.
        """
        if self._elsewhere is NOWHERE or node.children or node.leases or len(node.owners) >= _HOT_OWNERS:
            return blocks, blocks[:0]
        stop, last = len(blocks), node.blocks - 1
        while stop and blocks[stop - 1] == last and self._elsewhere.is_near(node.key(last)):
            stop, last = stop - 1, last - 1
        if stop < len(blocks):
            self.decisions["second_copy_skipped"] += len(blocks) - stop
            self._log.note("second_copy_skipped", node, blocks[stop:])
        return blocks[:stop], blocks[stop:]

    def _make_room(self, tier: CacheTier, node: Node, blocks: Sequence[int], waits: bool, stay: bool = False) -> None:
        """Makes room in a tier for blocks of `node`, as far as that evicts only what is worth less than they are."""
        pool, rank, last = tier.pool, tier.rank_of_demoted(node), blocks[-1]
        while pool.room < len(blocks):
            found = tier.active_queue.first()
            own = found is not None and found[0] is node
            if own and (stay or node.copies(tier.index) or node.holds_before(tier.index, last)):
                found = tier.active_queue.first(besides=node)  # the tier needs these if it is to get the others
            if found is None or (found[0] is not node and found[1] >= rank):
                return
            if not (slots := self.evict(tier, found[0], len(blocks) - pool.room, found[1], waits)):
                return
            self.submit_demotions(tier)
            self.release(tier, slots)

    def submit_demotions(self, tier: CacheTier) -> None:
        """Submits the copies from a tier to the slower one that have been planned."""
        if tier.demotions and tier.slower is not None:
            for faster in self._tiers[: tier.index]:
                self.submit_demotions(faster)  # their targets may be among these sources
            pool = tier.slower.pool
            sources, targets = new_slots(tier.demotions.values()), new_slots(tier.demotions)
            tier.demotions.clear()
            labels = [tier.labels[slot] for slot in targets] if self._labelled else ()
            tier.labels.clear()
            if not tier.dropped:
                self._in_flight.submit(tier.pool, sources, pool, targets, labels)
                return
            dropped = new_slots(tier.dropped)
            tier.dropped.clear()
            pool.withdraw(dropped)
            self._in_flight.submit(tier.pool, sources, pool, targets, labels)
            pool.release(dropped)

    def release(self, tier: CacheTier, slots: Slots) -> None:
        """Gives up slots of a tier. Planned copies to them are made all the same, unless another block takes the slot first."""
        for faster in self._tiers[: tier.index]:
            if faster.slower is tier and faster.demotions:
                faster.dropped |= faster.demotions.keys() & set(slots)
        tier.pool.release(slots)

    def cut(self, node: Node, blocks: int, reason: str, rank: Rank | None = None) -> None:
        """Drops all of a node after its first `blocks` blocks, and all its descendants, for one reason."""
        for child in list(node.children.values()) if node.children else ():
            self.cut(child, 0, reason)
            self._tree.remove_leaf(child)
        self._log.note(reason, node, range(blocks, node.blocks), rank, rank is not None and self._tiers[GPU].lru_active)
        if node.prefetched:
            self._ledger.leaving(node, blocks, self._tiers[GPU].pool.spoiled)
        self._ledger.early.wasted(node)
        for tier in self._tiers if any(node.held) else ():
            if node.held[tier.index]:
                self._ledger.staging.leaving(node, tier.index, range(blocks, node.blocks), tier.pool.spoiled)
                self.release(tier, self._tree.unplace(node, tier.index, blocks, node.blocks))
        self._announce(node, blocks, node.blocks)
        if blocks:
            self._tree.truncate(node, blocks)

    def note_lost(self, node: Node) -> None:
        """A node has lost some of its blocks in some tiers: tells where the others lie, and ranks it anew, if there are any."""
        if any(node.held):
            self._announce(node, 0, node.blocks)
        self._settle(node)
        self._order.offer(node)

    def _settle(self, node: Node) -> None:
        """Removes a node of which no tier holds any block, and ranks anew what has become a candidate or changed in size."""
        parent = node.parent
        assert parent is not None
        if not any(node.held):
            self._tree.remove_leaf(node)
            self._order.offer(parent)
            return
        self._order.resized(node)
        if not node.held[GPU]:
            self._order.offer(parent)

    def clear(self) -> int:
        """Drops all that no running sequence uses. Returns the blocks dropped, a block in two tiers counted once."""
        dropped = 0
        for node in reversed(list(self._tree.walk())):  # children before their parents
            if node.refs == 0:
                dropped += node.blocks
                self.cut(node, 0, "clear")
                self._tree.remove_leaf(node)
        return dropped
