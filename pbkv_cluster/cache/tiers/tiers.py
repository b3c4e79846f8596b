"""Which tier holds what: eviction from each tier into the next slower one, loading back to the GPU, and dropping.

Invariants, checked by `check_cache`: every block of the tree lies in some tier; what the GPU holds of a path is a leading run
of it; a node that a running sequence uses loses nothing.

A decision takes effect in the tree at once, while its bytes may still be on their way:

- A slot whose block has gone is not used again before the transfers that read or write it are done (`SlotState`).
- A sequence computes when the transfers that write its slots are done (`CacheHandle.ready`), or layer by layer (`arrivals`).
- Decisions do not depend on when transfers are done, but for what is so late that it is given up: leaving slots count as room,
  and if one is needed, `take` waits for it.
- No transfer is recalled. A block that is wanted on the GPU again while its demotion runs is loaded from the slot in which it
  arrives, by a transfer that comes after the demotion; a block that is dropped or evicted while it arrives is carried to the
  end, and its slots are free then.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TypeAlias

from pbkv_cluster.cache.copy_costs import CopyCosts
from pbkv_cluster.cache.decisions.log import DecisionLog
from pbkv_cluster.cache.eviction import EvictionQueue, Rank
from pbkv_cluster.cache.policies.base import ReusePolicy
from pbkv_cluster.cache.tiers.announcements import Announcements, ChangeListener
from pbkv_cluster.cache.tiers.elsewhere import NOWHERE, Elsewhere
from pbkv_cluster.cache.tiers.evictor import Evictor
from pbkv_cluster.cache.tiers.in_flight import TransfersInFlight
from pbkv_cluster.cache.tiers.order import EvictionOrder
from pbkv_cluster.cache.tiers.prefetch_ledger import LOAD_REASONS, PrefetchLedger, PrefetchSource
from pbkv_cluster.cache.tiers.spoiled import SpoiledBlocks
from pbkv_cluster.cache.tiers.tier import CacheTier, blocks_by_tier
from pbkv_cluster.cache.tiers.transfer import Transfer, TransferEngine
from pbkv_cluster.cache.tree.node import GPU, NO_SLOTS, Node, Slots, new_slots
from pbkv_cluster.cache.tree.prefix_tree import PrefixTree
from pbkv_cluster.core.clock import Clock
from pbkv_cluster.core.locations.residency import Residency
from pbkv_cluster.core.usage import Tier

_AHEAD, _AHEAD_SHARE = 8, 128  # blocks that a victim gives up together, and at most one in so many of the GPU's

MayEvict: TypeAlias = Callable[[Node, Rank], bool]
"""Whether a node may leave the GPU, given its rank there."""


class Tiers:
    """The tiers of a cache, from the fastest to the slowest. Iterating yields them."""

    def __init__(
        self,
        tree: PrefixTree,
        capacity: Mapping[Tier, int],
        policies: Sequence[ReusePolicy],
        engine: TransferEngine,
        clock: Clock,
        compute_seconds: Callable[[int], float],
        on_change: ChangeListener | None = None,
        elsewhere: Elsewhere = NOWHERE,
        log: DecisionLog | None = None,
    ) -> None:
        """Args:
        tree: the tree whose blocks lie here.
        capacity: blocks of each tier, the GPU first, then ever slower ones.
        policies: the reuse policy of each tier.
        engine: carries out the transfers.
        clock: for the policies.
        compute_seconds: how long the prefill of a number of tokens takes.
        on_change, elsewhere, log: see `KVCache`.
        """
        self.tree = tree
        self._tiers = [
            CacheTier(index, kind, blocks, policy, tree, clock)
            for index, ((kind, blocks), policy) in enumerate(zip(capacity.items(), policies, strict=True))
        ]
        for tier in self:
            tier.slower = next((other for other in self._tiers[tier.index + 1 :] if other.pool.capacity), None)
        self.gpu = self._tiers[GPU]
        self.pools = [tier.pool for tier in self]
        self.log = DecisionLog(clock, 0) if log is None else log
        self.announcements = Announcements(self._tiers, on_change)
        pools = {tier.kind: tier.pool for tier in self}
        self.in_flight = TransfersInFlight(engine, pools, clock, self.log, self.announcements.settle)
        self._engine = engine
        self.costs = CopyCosts(engine.seconds, engine.trial_blocks, self.in_flight.is_late, compute_seconds)
        self.note = self.announcements.announce  # to be called when other blocks of a node lie on the GPU
        self.order = EvictionOrder(self._tiers)
        self.offer, self.rerank = self.order.offer, self.order.rerank
        self.prefetched = PrefetchLedger()
        self.before_eviction: Callable[[], None] = lambda: None  # brings up to date what ranks depend on
        self.evictor = Evictor(
            tree,
            self._tiers,
            self.order,
            self.in_flight,
            self.note,
            lambda source, target, blocks: self.costs.demotion_pays(source.kind, target.kind, blocks),
            engine.labelled,
            elsewhere,
            self.prefetched,
            self.log,
        )
        self._spoiled = SpoiledBlocks(tree, self._tiers, self.evictor, self.prefetched)
        self.decisions = self.evictor.decisions  # blocks, by reason code
        self.evicted_by_policy = 0  # blocks of the GPU
        self.evicted_by_lru = 0  # blocks of the GPU, while `lru_active`

    def __iter__(self) -> Iterator[CacheTier]:
        return iter(self._tiers)

    def __getitem__(self, kind: Tier) -> CacheTier:
        return next(tier for tier in self if tier.kind is kind)

    # --- room on the GPU ---

    def room(self) -> int:
        """GPU blocks that can be had: free or leaving, or in use by no running sequence. Those that something late reads or
        writes are left out.
        """
        pool = self.gpu.pool
        return pool.room + max(0, self.tree.evictable[GPU] - pool.stuck_slots)

    def take(self, count: int, retired_only: bool = False) -> Slots | None:
        """Takes GPU slots, evicting the least valuable blocks if need be. None if there is no room; then nothing is evicted.
        With `retired_only`, evicts blocks of ended workflows only, and returns as many slots as that gives.
        """
        pool = self.gpu.pool
        missing = count - pool.room
        if missing > 0:
            if retired_only:
                self._make_gpu_room(missing, self.gpu.queue, lambda node, rank: node.retired and not node.leases)
                count = min(count, pool.room)
            elif count > self.room():
                return None
            else:
                self._make_gpu_room(missing, self.gpu.active_queue)
        if count > pool.free_slots:
            self.in_flight.wait_for_slots(pool, count)
        return pool.take(count)

    def take_spare(self, count: int, may_evict: MayEvict) -> Slots:
        """Takes up to `count` GPU slots that are free now, and waits for none. Where there are fewer, blocks are evicted as
        long as the next to go may. Their slots can be free at once, or later.
        """
        pool = self.gpu.pool
        if count > pool.room:
            self._make_gpu_room(count - pool.room, self.gpu.active_queue, may_evict, waits=False)
        return pool.take(min(count, pool.free_slots))

    def give(self, slots: Slots) -> None:
        """Gives back GPU slots that no node holds."""
        self.gpu.pool.release(slots)

    def _make_gpu_room(self, wanted: int, queue: EvictionQueue, may_evict: MayEvict | None = None, waits: bool = True) -> None:
        """Evicts blocks in a queue's order until there is room for `wanted` more, or as many as may go (`Evictor.evict`).

        Decodes want one block at a time, and ranking and demoting costs as much for one as for some: so a victim, unless it is
        leased, gives up a few of its blocks ahead of need.
        """
        self.before_eviction()
        evicted, missing = NO_SLOTS, wanted
        ahead = min(_AHEAD, self.gpu.pool.capacity // _AHEAD_SHARE) if may_evict is None else 0
        while missing > 0 and (found := queue.first()) is not None and (may_evict is None or may_evict(*found)):
            node, rank = found
            if not (slots := self.evictor.evict(self.gpu, node, missing if node.leases else max(missing, ahead), rank, waits)):
                break
            evicted = evicted + slots if evicted else slots
            missing -= self.gpu.pool.room_in(slots)
        if self.gpu.demotions:
            self.evictor.submit_demotions(self.gpu)
        self.gpu.pool.release(evicted)  # not sooner: only now do the transfers that read them hold them back
        if queue is self.gpu.lru:
            self.evicted_by_lru += len(evicted)
        else:
            self.evicted_by_policy += len(evicted)

    @property
    def has_dropped(self) -> bool:
        """Whether a block has ever been dropped, other than a copy."""
        return any(self.decisions[code] for tier in self for code in tier.codes.drop)

    # --- order ---

    def keep_lru(self) -> None:
        """Keeps all tiers' candidates in the order of LRU, too, so that `lru_active` can change at any time without a scan."""
        self.order.keep_lru()

    @property
    def lru_active(self) -> bool:
        """Whether blocks leave the GPU, and with it all tiers, in the order of LRU."""
        return self.gpu.lru_active

    @lru_active.setter
    def lru_active(self, active: bool) -> None:
        for tier in self:
            tier.lru_active = active

    # --- to the GPU ---

    def hold(self, node: Node, start: int, slots: Slots) -> None:
        """Notes that the GPU holds a node's blocks from `start` on, in these slots."""
        self.tree.place(node, GPU, start, slots)
        self.note(node, start, start + len(slots))

    def give_up_arriving(self, node: Node) -> None:
        """Takes a node's blocks off the GPU from the first on that has not arrived. They must be held there again at once, in
        other slots; prefetched ones count as used then, as if they had arrived.
        """
        if unwritten := self.gpu.pool.unwritten():
            held = node.held[GPU]
            arrived = next((at for at, slot in enumerate(node.slots[GPU][:held]) if slot in unwritten), held)
            self.give(self.tree.unplace(node, GPU, arrived, held))

    def load(self, path: Sequence[Node], slots: Slots, source: PrefetchSource | None = None) -> list[Transfer]:
        """Copies the first blocks of a path that the GPU lacks into `slots`, as many as these are, each from the fastest tier
        that has it; its copy there is the first to be evicted. With `source`, it is a prefetch. Returns the transfers: those of
        what may be late keep nothing else waiting.
        """
        pairs: dict[int, tuple[Slots, Slots]] = {}
        taken = 0
        for node in path:
            start = node.held[GPU]
            count = min(node.blocks - start, len(slots) - taken)
            if count:
                own = slots[taken : taken + count]
                for tier, first, stop in node.runs(start, start + count):
                    sources, targets = pairs.setdefault(tier, (new_slots(), new_slots()))
                    sources.extend(node.slots[tier][first:stop])
                    targets.extend(own[first - start : stop - start])
                self.hold(node, start, own)
                self.log.note(LOAD_REASONS[source], node, range(start, start + count))
                if source is not None:
                    self.prefetched.loaded(node, count, source)
                taken += count
        assert taken == len(slots)
        return [
            transfer
            for tier, (sources, targets) in sorted(pairs.items())
            for transfer in self.in_flight.submit(self.pools[tier], sources, self.gpu.pool, targets, urgent=source is None)
        ]

    def by_tier(self, path: Sequence[Node], blocks: int) -> dict[Tier, int]:
        """See `blocks_by_tier`."""
        return blocks_by_tier(self._tiers, path, blocks)

    # --- to slower tiers ---

    def write_through(self, node: Node, start: int, stop: int) -> None:
        """Copies some blocks of a node, which the GPU holds, to all slower tiers, where they are worth it there."""
        self.before_eviction()
        self.evictor.write_through(self.gpu, node, range(start, stop))

    # --- all tiers ---

    @property
    def spoiled(self) -> bool:
        """Whether blocks of the tree, or of running sequences, lack their bytes because a transfer has failed."""
        return any(pool.spoiled for pool in self.pools)

    def drop_spoiled(self) -> None:
        """Takes such blocks, if there are any, out of the tiers where they lack their bytes; see `SpoiledBlocks`."""
        if self.spoiled:
            self._spoiled.drop()

    def clear(self) -> int:
        """Drops all that no running sequence uses, so that no later process finds it, nor what was evicted earlier. Returns the
        blocks dropped, a block in two tiers counted once.
        """
        dropped = self.evictor.clear()
        for tier in self._tiers[GPU + 1 :]:
            self._engine.erase(tier.kind, tier.pool.vacant())
        return dropped

    def residency(self) -> Mapping[bytes, Residency]:
        """Every cached block's key, and where it lies."""
        return {node.key(block): each for node in self.tree.walk() for block, each in enumerate(self.residencies(node))}

    def residencies(self, node: Node) -> list[Residency]:
        """Where each block of a node lies."""
        return self.announcements.residencies(node, 0, node.blocks)
