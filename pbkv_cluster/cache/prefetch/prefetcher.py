"""Loads blocks to the GPU ahead of their use, and keeps within what the bus can carry meanwhile."""

from collections import Counter
from collections.abc import Sequence
from functools import partial

from pbkv_cluster.cache.eviction import Rank
from pbkv_cluster.cache.owners import ActiveWorkflows
from pbkv_cluster.cache.prefetch.early_demotion import EarlyDemotion
from pbkv_cluster.cache.prefetch.planner import PrefetchPlanner, QueuedPrompt
from pbkv_cluster.cache.prefetch.stager import Stager
from pbkv_cluster.cache.prefetch.usefulness import Usefulness
from pbkv_cluster.cache.sequence.paths import Paths
from pbkv_cluster.cache.tiers.prefetch_ledger import LOAD_REASONS, PrefetchSource
from pbkv_cluster.cache.tiers.tiers import Tiers
from pbkv_cluster.cache.tiers.transfer import Transfer
from pbkv_cluster.cache.tree.node import GPU, Node
from pbkv_cluster.cache.tree.prefix_tree import PrefixTree, lineage
from pbkv_cluster.core.clock import Clock
from pbkv_cluster.core.config import CacheConfig
from pbkv_cluster.core.usage import Tier

_INTERVAL_S, _INTERVAL_MAX_S = 0.25, 2.0  # from a look that found nothing to do to the next; doubled each time
_UNMEASURED = 16  # blocks, while no load has been measured
_MOST = 1024  # blocks, each time
_VICTIMS = 32  # nodes that are next to leave the GPU and are ranked anew, each time


class Prefetcher:
    """Prefetches for one cache. Its thread asks between two batches."""

    def __init__(
        self,
        tree: PrefixTree,
        tiers: Tiers,
        workflows: ActiveWorkflows,
        paths: Paths,
        stager: Stager,
        config: CacheConfig,
        clock: Clock,
    ) -> None:
        self._tree = tree
        self._tiers = tiers
        self._paths = paths
        self._planner = PrefetchPlanner(tree, tiers, workflows)
        self._mode = config.prefetch if tiers.gpu.slower is not None else "none"
        demotes = config.demote_early and tiers.gpu.slower is not None
        self._early = EarlyDemotion(tiers) if demotes else None
        self._stager = stager if config.stage and tiers[Tier.HOST].pool.capacity else None
        self._clock = clock
        self._useful = {source: Usefulness() for source in (PrefetchSource.QUEUE, PrefetchSource.FORECAST)}
        self._in_flight: list[Transfer] = []
        self._due_at, self._interval_s = 0.0, _INTERVAL_S
        self._locked: list[Node] = []
        self._given_up: set[Node] = set()  # nodes that have lost blocks to the loads of this run

    @property
    def due_at(self) -> float | None:
        """When it is worth asking again, at the earliest; None: it never is."""
        return None if self._mode == "none" and self._early is None and self._stager is None else self._due_at

    @property
    def swaps(self) -> bool:
        """Whether blocks of active workflows may leave the GPU for prefetched ones, as far as the latter are useful."""
        return self._mode == "queue"

    def wake(self) -> None:
        """Something has happened that may make a prefetch worth while."""
        self._due_at, self._interval_s = 0.0, _INTERVAL_S

    def run(self, seconds: float, prompts: Sequence[QueuedPrompt]) -> int:
        """Starts the loads that are worth making now, early demotions, and what is staged, which have ways of their own.

        No load is started while earlier ones are under way, so that a step never waits for more than one budget.

        Args:
            seconds: that the loads may take: of the batch that is about to run.
            prompts: of the steps that wait, in the order in which they will be admitted.

        Returns:
            Blocks that are loaded.
        """
        now = self._clock.now()
        self._in_flight = [transfer for transfer in self._in_flight if not transfer.done]
        if self.due_at is None or now < self._due_at:
            return 0
        demoted = 0 if self._early is None else self._early.run(seconds, now)
        budget = 0 if self._mode == "none" or self._in_flight else self.budget(seconds)
        loaded = self._load_ahead(budget, prompts, now) if budget else 0
        staged = 0 if self._stager is None else self._stager.run(seconds, prompts, now)
        if demoted or loaded or staged:
            self._due_at, self._interval_s = now, _INTERVAL_S
        elif budget or self._mode == "none":  # else the next batch may take longer: nothing was looked for, or put off
            self._due_at, self._interval_s = now + self._interval_s, min(2 * self._interval_s, _INTERVAL_MAX_S)
        return loaded

    def _load_ahead(self, budget: int, prompts: Sequence[QueuedPrompt], now: float) -> int:
        self._given_up.clear()
        self._tiers.gpu.active_queue.rank_next(_VICTIMS)  # by what they are worth now, as what is loaded for is
        left = budget - self._load_queued(budget, prompts, now)
        left -= self._load_likely(left, now)
        for node in self._locked:
            self._paths.unlock_node(node)
        self._locked.clear()
        self._in_flight = [transfer for transfer in self._in_flight if not transfer.done]
        return budget - left

    def budget(self, seconds: float) -> int:
        """Blocks that can be loaded within so many seconds."""
        slower = self._tiers.gpu.slower
        assert slower is not None
        waiting, one = (self._tiers.costs.copy_seconds(slower.kind, Tier.GPU, blocks) for blocks in (0, 1))
        if one <= waiting:
            return _UNMEASURED
        return min(_MOST, max(0, int((seconds - waiting) / (one - waiting) + 1e-9)))

    def _load_queued(self, budget: int, prompts: Sequence[QueuedPrompt], now: float) -> int:
        done, value = 0, self._planner.queued_value(now)
        for match in self._planner.queued(prompts):
            if path := self._paths.lock_match(match):
                self._locked.append(path[-1])
        for last in tuple(self._locked):  # only now: what one step will use must not leave for another's
            for node in reversed(list(lineage(last))):
                if node.held[GPU] < node.blocks:
                    if done < budget:
                        done += self._load(node, budget - done, value, PrefetchSource.QUEUE, now)
                    if node.held[GPU] < node.blocks:
                        return done
        return done

    def _load_likely(self, budget: int, now: float) -> int:
        done = 0
        for node, value in self._planner.likely(now) if budget > 0 else ():
            self._tree.lock(node)
            self._locked.append(node)
            done += self._load(node, budget - done, value, PrefetchSource.FORECAST, now)
            if done >= budget:
                break
        return done

    def _load(self, node: Node, most: int, value: float | None, source: PrefetchSource, now: float) -> int:
        """Loads blocks of a locked node, as many as there is room for. Returns their number."""
        wanted = min(most, node.blocks - node.held[GPU])
        if node in self._given_up or not self._pays(node, wanted):
            return 0
        count = self._tiers.prefetched.count(source)
        allowance = self._useful[source].allowance(count, now) if self.swaps else 0
        swaps = allowance is None or allowance >= wanted
        slots = self._tiers.take_spare(wanted, partial(self._gives_up, value, source, swaps))
        if not slots:
            return 0
        if source is PrefetchSource.QUEUE:
            node.last_access = now  # it is about to be used: LRU must not take it first
        self._in_flight += self._tiers.load([node], slots, source)
        self._tiers.decisions[LOAD_REASONS[source]] += len(slots)
        return len(slots)

    def _gives_up(self, value: float | None, source: PrefetchSource, swaps: bool, node: Node, rank: Rank) -> bool:
        """Lets a node go for another, see `PrefetchPlanner.may_evict`; then it is not loaded again at once."""
        given_up = self._planner.may_evict(value, source, swaps, node, rank)
        if given_up:
            self._given_up.add(node)
        return given_up

    def _pays(self, node: Node, wanted: int) -> bool:
        """Whether to load so many blocks of a node is worth it now.

        What is still being staged comes later: a step would wait for both.
        """
        counts, start = Counter[Tier](), node.held[GPU]
        for index, first, stop in node.runs(start, start + wanted):
            counts[self._tiers.pools[index].kind] += stop - first
        if any(self._tiers.costs.worth_loading(kind, blocks) < blocks for kind, blocks in counts.items()):
            self._tiers.decisions["prefetch_skipped_slower"] += wanted
            return False
        slower = (tier for tier in self._tiers if tier.index != GPU and node.held[tier.index])
        return not any(tier.pool.staging(node.slots[tier.index])[1] for tier in slower)
