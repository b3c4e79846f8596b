"""The KV cache of one worker: what running sequences ask of the prefix tree and its tiers.

A sequence opens a `CacheHandle` on the longest cached prefix of its prompt, grows it by blocks of its own, and commits these as
they fill up, so that other sequences can match them at once. When it closes the handle, all committed blocks stay cached.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence

from pbkv_cluster.cache.decisions.log import DecisionLog
from pbkv_cluster.cache.integrity import check_cache
from pbkv_cluster.cache.observer import CacheObserver, GuardStat
from pbkv_cluster.cache.owners import ActiveWorkflows
from pbkv_cluster.cache.policies.base import ReusePolicy, make_policies
from pbkv_cluster.cache.prefetch.prefetcher import Prefetcher
from pbkv_cluster.cache.prefetch.shelter import Shelter
from pbkv_cluster.cache.prefetch.stager import Stager
from pbkv_cluster.cache.requests import ClientRequests
from pbkv_cluster.cache.sequence.admission import Admission
from pbkv_cluster.cache.sequence.commit import Committer
from pbkv_cluster.cache.sequence.fetch import Fetcher
from pbkv_cluster.cache.sequence.handle import CacheHandle
from pbkv_cluster.cache.sequence.late_writes import LateWrites
from pbkv_cluster.cache.sequence.paths import Paths
from pbkv_cluster.cache.sequence.remote import RemoteSteps
from pbkv_cluster.cache.sequence.stored_blocks import StoredBlocks
from pbkv_cluster.cache.step_identity import StepIdentity
from pbkv_cluster.cache.tiers.announcements import ChangeListener
from pbkv_cluster.cache.tiers.elsewhere import NOWHERE, Elsewhere
from pbkv_cluster.cache.tiers.leases import BlockLeases
from pbkv_cluster.cache.tiers.tiers import Tiers
from pbkv_cluster.cache.tiers.transfer import TransferEngine
from pbkv_cluster.cache.tree.prefix_tree import PrefixTree
from pbkv_cluster.core.blocks import Namespace, StoredBlock
from pbkv_cluster.core.clock import Clock
from pbkv_cluster.core.config import CacheConfig
from pbkv_cluster.core.forecasts.forecast import Forecast
from pbkv_cluster.core.tokens import BLOCK_BYTES, blocks_for, full_blocks
from pbkv_cluster.core.usage import Tier
from pbkv_cluster.core.workflow.remote_steps import RemoteStepEvent
from pbkv_cluster.core.workflow.tool_call import ToolCall
from pbkv_cluster.reuse.record.prefix_popularity import PrefixPopularity

_POPULARITY_BLOCKS = 8  # blocks whose popularity is remembered, for each block of the GPU


class KVCache:
    """Prefix tree and tiers of one worker. Not safe for threads: it belongs to the engine's."""

    def __init__(
        self,
        capacity: Mapping[Tier, int],
        config: CacheConfig,
        engine: TransferEngine,
        clock: Clock,
        on_change: ChangeListener | None = None,
        compute_seconds: Callable[[int], float] = lambda tokens: float("inf"),
        policies: Sequence[ReusePolicy] | None = None,
        elsewhere: Elsewhere = NOWHERE,
        log: DecisionLog | None = None,
    ) -> None:
        """Args:
        capacity: blocks of each tier, the GPU first, then ever slower ones; all but the GPU's may be 0.
        config: names the policies.
        engine: carries out the transfers between the tiers.
        clock: the engine's.
        on_change: told of every block that enters or leaves a tier.
        compute_seconds: how long the prefill of a number of tokens takes; a load that takes longer is not made.
        policies: of each tier; None: those that `config` names.
        elsewhere: what other processes hold.
        log: told of every decision about blocks; None: there is none.

        Raises:
            InvalidArgument: an unknown policy.
        """
        self.tree = tree = PrefixTree(len(capacity))
        self.policies = make_policies(len(capacity), config) if policies is None else policies  # of each tier
        near = NOWHERE if config.write_through else elsewhere  # what follows a block is lost to a restarted worker without it
        self.tiers = tiers = Tiers(tree, capacity, self.policies, engine, clock, compute_seconds, on_change, near, log)
        self.workflows = workflows = ActiveWorkflows(list(dict.fromkeys(self.policies)), tiers, clock)
        self.popularity = PrefixPopularity(_POPULARITY_BLOCKS * capacity[Tier.GPU])
        self.handles: dict[CacheHandle, None] = {}  # open ones, in the order in which they were opened
        self.observer = CacheObserver()
        self._clock = clock
        self.half_life_s = config.lfu_half_life_s  # of the count of uses, see `aged_uses`
        self._paths = paths = Paths(tree, tiers, workflows, self.popularity, self.half_life_s)
        self._stored = stored = StoredBlocks(tree, tiers, paths)
        self._committer = Committer(tree, tiers, paths, stored, config.write_through)
        self.late_writes = late = LateWrites(tree, tiers, config.write_through)
        fetcher = Fetcher(tree, tiers, paths, self._committer, late, stored, elsewhere, compute_seconds)
        self._admission = Admission(tree, tiers, workflows, paths, self.popularity, fetcher)
        self.remote = RemoteSteps(tree, workflows, paths, self.popularity)
        self.shelter = Shelter(tree, tiers, paths, fetcher, elsewhere, clock)
        stager = Stager(tree, tiers, workflows, paths, fetcher, self.remote)
        self.prefetcher = Prefetcher(tree, tiers, workflows, paths, stager, config, clock)
        leases = self.leases = BlockLeases(tree, tiers.offer, clock, capacity[Tier.GPU], config.lease_share, tiers.decisions)
        tiers.before_eviction = leases.expire
        self.requests = ClientRequests(tree, tiers, workflows, paths, fetcher, stager, leases, lambda: self.observer, clock)
        self._lease_s = config.workflow_lease_s

    @property
    def policy(self) -> ReusePolicy:
        """The reuse policy of the GPU tier."""
        return self.policies[0]

    def captured(self, namespace: Namespace, tokens: bytes) -> dict[Tier, int]:
        """Tokens of a prompt that each tier holds and a sequence could use now. Changes nothing."""
        return self._admission.cached(namespace, tokens)

    def queued(self, workflow: str, number: int, tokens: bytes) -> None:
        """A step waits for admission: its workflow, where known here, is certain to use what its prompt matches.

        Args:
            workflow: whose step it is.
            number: of the step, as the gateway counts them.
            tokens: its prompt; empty: it was withdrawn.
        """
        self.workflows.step_queued(workflow, number, tokens)
        self.prefetcher.wake()
        self.observer.step_queued(workflow, number, tokens)

    def open(
        self,
        step: StepIdentity,
        tokens: bytes,
        reserve: int = 0,
        again: bool = False,
        shadow_of: CacheHandle | None = None,
        ahead: int | None = None,
    ) -> CacheHandle | None:
        """Finds the longest cached prefix, brings it to the GPU, and keeps it there. See `Admission` for the phases.

        Args:
            step: which step it is.
            tokens: all tokens of the sequence so far; at least the last is left to be computed.
            reserve: blocks that running sequences will still need.
            again: it was open before, and closed unfinished: the guard does not count its hits a second time.
            shadow_of: another cache's handle on the same step, whose record of the workflow serves both.
            ahead: tokens that are to be computed before its own; None: nothing is to be fetched for it from elsewhere.

        Returns:
            None when the GPU has no room for the whole of `tokens`, one block more, and the reserve.
        """
        for workflow in self.workflows.silent(self._lease_s):  # its end was not told, or it was retired before its last step
            self._end(workflow, logged=False)
        handle = self._admission.open(step, tokens, reserve, shadow_of, self._clock.now, ahead)
        if handle is not None:
            self.handles[handle] = None
            handle.owner.running += 1
            handle.owner.remote.discard(step.number)
            self.observer.step_opened(step, tokens, handle, again)
        return handle

    def grow(self, handle: CacheHandle, tokens: int) -> bool:
        """Makes room for `tokens` tokens in all. False when the GPU has none; then the block table stays as it was."""
        slots = self.tiers.take(max(0, blocks_for(tokens) - len(handle.table)))
        if slots is None:
            return False
        handle.table.extend(slots)
        return True

    def commit(self, handle: CacheHandle, tokens: bytes | bytearray, computed: int | None = None) -> None:
        """Enters the blocks that have filled up into the tree.

        Where another sequence has entered the same blocks meanwhile, this one continues with those and frees its own.

        Args:
            handle: the sequence's.
            tokens: of the sequence, from its start.
            computed: how many of them have had their KV computed; None: all.
        """
        full = len(tokens) // BLOCK_BYTES if computed is None else full_blocks(computed)
        self._committer.commit(handle, tokens, full, self._clock.now())
        self.observer.blocks_committed(handle, tokens, computed)

    def close(self, handle: CacheHandle) -> None:
        """Ends a sequence's hold. Committed blocks stay cached, the others are freed."""
        self.observer.step_closing(handle)
        node = handle.table.node
        self.tiers.give(handle.table.clear())
        now = self._clock.now()
        handle.owner.running -= 1
        if handle.records:
            handle.recorded.end(now)
        self.workflows.step_ended(handle.owner, now)
        if node.writer is handle:
            node.writer = None
        self._paths.unlock_node(node)
        del self.handles[handle]
        self.tiers.drop_spoiled()
        self.observer.step_closed(handle)

    def restore(self, blocks: Mapping[Tier, Iterable[StoredBlock]]) -> int:
        """Finds blocks in slower tiers that an earlier process has stored there; to be called before anything else. Returns how
        many can be matched at once; others can when what only the GPU had before them has been computed again.
        """
        return self._stored.restore(blocks, self._clock.now())

    def poll(self) -> None:
        """Takes note of the transfers that have been completed; to be called before each batch."""
        self.tiers.in_flight.poll()
        self.tiers.drop_spoiled()
        self.late_writes.run()

    def is_ready(self, handle: CacheHandle) -> bool:
        """Whether everything in a handle's table has arrived. Before that, only `seconds_left` allows to compute on it."""
        return handle.ready and not (self.tiers.spoiled and self._is_broken(handle))

    def seconds_left(self, handle: CacheHandle) -> float | None:
        """How long until a handle is ready, if a step may begin before that; what it computes counts if the handle then is."""
        return None if self.tiers.spoiled and self._is_broken(handle) else handle.seconds_left

    def broken(self) -> list[CacheHandle]:
        """Handles on blocks that did not arrive, oldest first. Each must be closed; its sequence can then be opened again."""
        return [handle for handle in self.handles if self._is_broken(handle)] if self.tiers.spoiled else []

    def continued(self) -> list[CacheHandle]:
        """Handles whose sequences can have more from the cache if they are closed and opened again."""
        return [handle for handle in self.handles if handle.continued]

    def _is_broken(self, handle: CacheHandle) -> bool:
        return not self.tiers.gpu.pool.spoiled.isdisjoint(handle.table.slots)

    def wait(self, handle: CacheHandle, timeout_s: float | None = None) -> None:
        """Blocks until a handle is ready, or its blocks have been given up, or `timeout_s` seconds have passed."""
        self.tiers.in_flight.wait(handle.waits_for, timeout_s)
        self.tiers.drop_spoiled()
        self.late_writes.run()

    def retire(self, workflow: str) -> None:
        """The workflow has ended and owns nothing any more."""
        self._end(workflow, logged=True)

    def hear(self, workflow: str, events: Iterable[RemoteStepEvent], namespace: Namespace, after: int = -1) -> bool:
        """Steps of the workflow have begun or ended on other workers.

        What was told before is not taken again, nor does it open a workflow again that has ended.

        Args:
            workflow: its id.
            events: in order, with times on this cache's clock.
            namespace: of the model's blocks; tenant and length of each step are added.
            after: index of what was told last; -1: nothing was.

        Returns:
            Whether what was told last has arrived; if not, nothing is taken.
        """
        if after > self.workflows.heard(workflow):
            return False
        for event in events:
            space = namespace.of_tenant(event.tenant, event.length)
            position = self.remote.take(workflow, event, space)
            if position is not None:
                self.observer.step_heard(workflow, space, position)
        return True

    def tool_call(self, workflow: str, call: ToolCall, started: bool) -> None:
        """The workflow has begun to wait for a tool, or no longer does: its next step may come later, or soon."""
        self.workflows.tool_call(workflow, call, started)
        self.observer.tool_called(workflow, call, started)

    def apply(self, forecast: Forecast) -> bool:
        """Applies a forecast to the values of its workflow's nodes. False if it is old, or the workflow not known here."""
        if forecast.ended:
            known = self.workflows.expects(forecast)
            if known:
                self.retire(forecast.workflow)
            return known
        applied = self.workflows.apply(forecast)
        if applied:
            self.observer.forecast_applied(forecast)
        return applied

    def _end(self, workflow: str, logged: bool) -> None:
        self.workflows.retire(workflow, logged)
        self.leases.workflow_ended(workflow)
        self.observer.workflow_retired(workflow)

    def clear(self) -> int:
        """Drops all that no running sequence uses. Returns the blocks dropped."""
        dropped = self.tiers.clear()
        self._stored.clear()
        self.observer.cleared()
        return dropped

    def used_blocks(self, tier: Tier) -> int:
        """Blocks of a tier that are cached or in use."""
        return self.tiers[tier].pool.used_slots

    def locked_blocks(self, tier: Tier) -> int:
        """Blocks of a tier that running sequences use."""
        return self.used_blocks(tier) - self.tree.evictable[self.tiers[tier].index]

    def guard(self) -> GuardStat | None:
        """What the guard has seen and done; None where there is none."""
        return self.observer.stat()

    def check_integrity(self) -> None:
        """Raises AssertionError where tree, tiers, owners and block tables contradict each other."""
        check_cache(self.tree, self.tiers, self.workflows, [handle.table for handle in self.handles])
        self.observer.check_integrity()
