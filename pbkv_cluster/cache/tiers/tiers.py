"""What lies where: eviction from the GPU into host memory, loading back, and dropping, over the tree's nodes.

Invariants, checked by `check_integrity`: every block of the tree lies in some tier; what the GPU holds of a path is a leading
run of it; a node that a running sequence uses loses nothing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Sequence

from pbkv_cluster.cache.eviction import EvictionQueue, Rank
from pbkv_cluster.cache.policies.base import ReusePolicy
from pbkv_cluster.cache.tiers.mover import Mover
from pbkv_cluster.cache.tiers.pool import BlockPool
from pbkv_cluster.cache.tree.node import ABSENT, GPU, HOST, LEVELS, LRU, Node, Slots, new_slots
from pbkv_cluster.cache.tree.prefix_tree import PrefixTree, copies
from pbkv_cluster.core.clock import Clock
from pbkv_cluster.core.usage import Tier

_COPY, _RETIRED, _ACTIVE = 0, 1, 2

ChangeListener = Callable[[bytes, frozenset[Tier]], None]
"""Told the key of each block whose tiers have changed, and the tiers that hold it now."""

_TIERS: tuple[frozenset[Tier], ...] = (
    frozenset(),
    frozenset({Tier.GPU}),
    frozenset({Tier.HOST}),
    frozenset({Tier.GPU, Tier.HOST}),
)


class Tiers:
    """The GPU pool and the host tier below it."""

    def __init__(
        self,
        tree: PrefixTree,
        capacity: Sequence[int],
        policies: Sequence[ReusePolicy],
        mover: Mover,
        clock: Clock,
        on_change: ChangeListener | None = None,
    ) -> None:
        """Args:
        tree: the tree whose nodes lie here.
        capacity: blocks of each level.
        policies: the reuse policy of each level.
        mover: carries the bytes.
        clock: for the policies.
        on_change: told of every block that enters or leaves a tier.
        """
        self.tree = tree
        self.pools = [BlockPool(level, capacity[level]) for level in LEVELS]
        self.decisions: Counter[str] = Counter()
        self._policies = policies
        self._mover = mover
        self._clock = clock
        self._on_change = on_change
        self._queues = [
            EvictionQueue(GPU, self._gpu_rank, tree.is_candidate),
            EvictionQueue(HOST, self._host_rank, tree.is_candidate),
        ]
        self._in_use = [queue for queue, blocks in zip(self._queues, capacity, strict=True) if blocks]
        # Whose order a node's size matters to: copies in host memory become the only ones.
        self._by_size = [queue for queue in self._in_use if queue is not self._queues[GPU] or policies[GPU].positional]
        ranks = (self._gpu_ranks, self._host_ranks)
        self._following = [
            each for each, policy in zip(zip(self._queues, ranks, strict=True), policies, strict=True) if not policy.steady
        ]
        for queue, rank_all, policy in zip(self._queues, ranks, policies, strict=True):
            if policy.drifts:
                queue.defer(rank_all)
        self.lean = False  # evict from the GPU in the order of LRU; `keep_lru` must have been called before the first block
        self.evicted_by_policy = 0  # blocks
        self.evicted_by_lru = 0  # blocks, while it leaned
        self._demotions: dict[int, int] = {}  # host slot to the GPU slot whose bytes it is to take

    # --- room ---

    def room(self) -> int:
        """GPU blocks that can be had at once: free, or in use by no running sequence."""
        return self.pools[GPU].free_slots + self.tree.evictable[GPU]

    def take(self, count: int, retired_only: bool = False) -> Slots | None:
        """Takes GPU slots, evicting the least valuable blocks if need be. None if there is no room; then nothing is evicted.

        With `retired_only`, evicts blocks of ended workflows only, and returns as many slots as that gives.
        """
        pool = self.pools[GPU]
        missing = count - pool.free_slots
        if missing > 0 and not retired_only and count > self.room():
            return None
        lean, free = self.lean and not retired_only, pool.free_slots
        queue = self._queues[LRU if lean else GPU]
        while missing > 0:
            found = queue.first()
            if found is None or (retired_only and not found[0].retired):
                break
            self._evict(found[0], missing)
            missing = count - pool.free_slots
        self._flush_demotions()
        if lean:
            self.evicted_by_lru += pool.free_slots - free
        else:
            self.evicted_by_policy += pool.free_slots - free
        assert missing <= 0 or retired_only, "evictable blocks were miscounted"
        return pool.take(count - max(0, missing))

    def give(self, slots: Slots) -> None:
        """Gives back GPU slots that no node holds."""
        self.pools[GPU].give(slots)

    def offer(self, node: Node) -> None:
        """Ranks a node anew wherever it is a candidate for eviction."""
        if not node.is_root:
            for queue in self._in_use:
                queue.offer(node)

    def rerank(self, nodes: Collection[Node]) -> None:
        """Ranks nodes anew where what their workflows do may have changed their values."""
        for queue, ranks in self._following:
            queue.offer_all(nodes, ranks)

    def keep_lru(self) -> None:
        """Keeps the GPU's candidates in the order of LRU as well, so that `lean` can change at any time, without a scan."""
        queue = EvictionQueue(GPU, _recency, self.tree.is_candidate, LRU)
        self._queues.append(queue)
        self._in_use.append(queue)

    # --- moves ---

    def hold(self, node: Node, start: int, slots: Slots) -> None:
        """Notes that the GPU holds a node's blocks from `start` on, whose bytes are in `slots` already."""
        self.tree.place(node, GPU, start, slots)
        self.note(node, start, start + len(slots))

    def load(self, path: Sequence[Node], slots: Slots) -> None:
        """Copies the first blocks of a path that lie in host memory alone to the GPU, as many as there are `slots`. The host
        keeps its copies; they are the first to go there.
        """
        sources = new_slots()
        at = 0
        for node in path:
            start = node.held[GPU]
            count = min(node.blocks - start, len(slots) - at)
            if count:
                sources.extend(node.slots[HOST][start : start + count])
                self.hold(node, start, slots[at : at + count])
                at += count
        assert at == len(slots)
        assert ABSENT not in sources
        self._mover.copy(HOST, sources, GPU, slots)

    def load_seconds(self, blocks: int) -> float:
        """How long such a load takes."""
        return self._mover.seconds(HOST, GPU, blocks)

    def _evict(self, node: Node, wanted: int) -> None:
        """Takes up to `wanted` of a node's blocks off the GPU, last first; into host memory where that is worth it."""
        held = node.held[GPU]
        start = held - min(wanted, held)
        self.decisions["evict_retired" if node.retired else "evict_active"] += held - start
        homeless = self._demote(node, start, held)
        self.pools[GPU].give(self.tree.unplace(node, GPU, start, held))
        self.note(node, start, held)
        if homeless:
            self.decisions["drop"] += len(homeless)
            self._cut(node, homeless[0])
        self._settle(node)

    def _demote(self, node: Node, start: int, stop: int) -> Sequence[int]:
        """Finds places in host memory for blocks that lie on the GPU, where that is worth it. Returns those without one."""
        pool = self.pools[HOST]
        if pool.capacity == 0:
            return range(start, stop)
        self._make_host_room(node, self._without_copy(node, start, stop))
        homeless = self._without_copy(node, start, stop)
        kept = homeless[: pool.free_slots]
        for block, slot in zip(kept, pool.take(len(kept)), strict=True):
            self._demotions[slot] = node.slots[GPU][block]
            self.tree.place(node, HOST, block, new_slots((slot,)))
        self.decisions["demote"] += len(kept)
        return homeless[len(kept) :]

    @staticmethod
    def _without_copy(node: Node, start: int, stop: int) -> Sequence[int]:
        places, blocks = node.slots[HOST], range(start, stop)
        return [block for block in blocks if places[block] == ABSENT] if places else blocks

    def _make_host_room(self, node: Node, blocks: Sequence[int]) -> None:
        """Makes room for blocks of `node` in host memory, as far as that drops only what is worth less than they are."""
        pool = self.pools[HOST]
        if pool.free_slots >= len(blocks):
            return
        rank = self._host_rank(node)._replace(group=_RETIRED if node.retired else _ACTIVE)
        while pool.free_slots < len(blocks):
            found = self._queues[HOST].first()
            if found is None:
                return
            if found[0] is node:
                if copies(node):
                    return  # its own copies are among the blocks that are about to need them
            elif found[1] >= rank:
                return
            self._drop_from_host(found[0], len(blocks) - pool.free_slots)

    def _drop_from_host(self, node: Node, wanted: int) -> None:
        """Drops up to `wanted` blocks of a node from host memory: first copies of what the GPU holds, else from the end."""
        doubled = copies(node)
        if doubled:
            start = node.held[GPU]
            while wanted and doubled:
                start -= 1
                freed = self.tree.unplace(node, HOST, start, start + 1)
                self.pools[HOST].give(freed)
                wanted -= len(freed)
                doubled -= len(freed)
                self.decisions["host_drop_copy"] += len(freed)
            self.note(node, start, node.held[GPU])
        else:
            cut = max(node.held[GPU], node.blocks - wanted)
            self.decisions["host_drop_retired" if node.retired else "host_drop_active"] += node.blocks - cut
            self._cut(node, cut)
        self._settle(node)

    def _cut(self, node: Node, blocks: int) -> None:
        """Forgets all of a node behind its first `blocks` blocks, and all below it."""
        for child in list(node.children.values()):
            self._cut(child, 0)
            self.tree.remove_leaf(child)
        if node.held[GPU] > blocks:
            self.pools[GPU].give(self.tree.unplace(node, GPU, blocks, node.blocks))
        if node.held[HOST]:
            self.pools[HOST].give(self.tree.unplace(node, HOST, blocks, node.blocks))
        self.note(node, blocks, node.blocks)
        if blocks:
            node.truncate(blocks)

    def _settle(self, node: Node) -> None:
        """Removes a node that holds nothing any more, and ranks anew whatever that or its smaller size makes a candidate."""
        parent = node.parent
        assert parent is not None
        if not any(node.held):
            self.tree.remove_leaf(node)
            self.offer(parent)
            return
        for queue in self._by_size:
            queue.offer(node)
        if not node.held[GPU]:
            self.offer(parent)

    def _flush_demotions(self) -> None:
        if self._demotions:
            self._mover.copy(GPU, list(self._demotions.values()), HOST, list(self._demotions))
            self._demotions.clear()

    def clear(self) -> int:
        """Drops all that no running sequence uses. Returns the blocks dropped, a block in two tiers counted once."""
        dropped = 0
        for node in reversed(list(self.tree.walk())):  # children before their parents
            if node.refs == 0:
                dropped += node.blocks
                self._cut(node, 0)
                self.tree.remove_leaf(node)
        return dropped

    # --- order ---

    def _gpu_rank(self, node: Node) -> Rank:
        policy = self._policies[GPU]
        return _rank(node, policy, policy.value(node, self._clock.now()))

    def _host_rank(self, node: Node) -> Rank:
        policy = self._policies[HOST]
        return _host_rank(node, policy, policy.value(node, self._clock.now()))

    def _gpu_ranks(self, nodes: Sequence[Node]) -> list[Rank]:
        policy = self._policies[GPU]
        values = policy.values(nodes, self._clock.now())
        if policy.retired_first:
            return [_rank(node, policy, value) for node, value in zip(nodes, values, strict=True)]
        return [Rank(_ACTIVE, value, node.last_access) for node, value in zip(nodes, values, strict=True)]

    def _host_ranks(self, nodes: Sequence[Node]) -> list[Rank]:
        policy = self._policies[HOST]
        values = policy.values(nodes, self._clock.now())
        return [_host_rank(node, policy, value) for node, value in zip(nodes, values, strict=True)]

    def check_integrity(self) -> None:
        """Raises:
        AssertionError: a queue lacks a candidate.
        """
        nodes = list(self.tree.walk())
        for number, queue in enumerate(self._queues):
            level = GPU if number == LRU else LEVELS[number]
            expected = {node for node in nodes if self.tree.is_candidate(node, level)}
            assert queue.candidates() == expected, f"queue {number}: candidates are missing"

    # --- changes ---

    def note(self, node: Node, start: int, stop: int) -> None:
        """Tells the listener where a node's blocks from `start` to `stop` lie now."""
        if self._on_change is None:
            return
        gpu, host = node.slots[GPU], node.slots[HOST]
        for block in range(start, stop):
            on_gpu = bool(gpu) and gpu[block] != ABSENT
            on_host = bool(host) and host[block] != ABSENT
            self._on_change(node.key(block), _TIERS[on_gpu + 2 * on_host])


def _rank(node: Node, policy: ReusePolicy, value: float) -> Rank:
    return Rank(_RETIRED if policy.retired_first and node.retired else _ACTIVE, value, node.last_access)


def _host_rank(node: Node, policy: ReusePolicy, value: float) -> Rank:
    return Rank(_COPY, value, node.last_access) if copies(node) else _rank(node, policy, value)


def _recency(node: Node) -> Rank:
    return Rank(_ACTIVE, node.last_access, node.last_access)
