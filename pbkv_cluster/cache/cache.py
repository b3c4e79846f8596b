"""The KV cache of one worker: what running sequences ask of the tree and its tiers.

A sequence opens a `CacheHandle` on the longest cached prefix of its prompt, grows it by blocks of its own, commits these as
they fill up, so that others can match them at once, and closes it at its end, which leaves everything committed in the cache.
"""

from collections.abc import Callable, Mapping

from pbkv_cluster.cache.guard.balance import GuardStat
from pbkv_cluster.cache.handle import UNRECORDED, CacheHandle, Prefetched
from pbkv_cluster.cache.owners import Workflows
from pbkv_cluster.cache.policies.base import ReusePolicy, make_policy
from pbkv_cluster.cache.tiers.mover import Mover
from pbkv_cluster.cache.tiers.tiers import ChangeListener, Tiers
from pbkv_cluster.cache.tree.node import ABSENT, GPU, LEVELS, Level, Node, Owner, aged_uses, new_slots
from pbkv_cluster.cache.tree.prefix_tree import Match, PrefixTree
from pbkv_cluster.core.blocks import Namespace
from pbkv_cluster.core.clock import Clock
from pbkv_cluster.core.config import CacheConfig
from pbkv_cluster.core.forecasts.forecast import Forecast
from pbkv_cluster.core.step_graph import StepGraph
from pbkv_cluster.core.tokens import BLOCK_BYTES, BLOCK_TOKENS, blocks_for, common_blocks, count, full_blocks
from pbkv_cluster.core.usage import Tier
from pbkv_cluster.reuse.record.prefix_popularity import PrefixPopularity

_CATALOG = 8  # blocks that it remembers, for each of the GPU's


class KVCache:
    """Prefix tree, GPU pool and host tier of one worker. Not safe for threads: it belongs to the engine's."""

    def __init__(
        self,
        gpu_blocks: int,
        host_blocks: int,
        config: CacheConfig,
        mover: Mover,
        clock: Clock,
        on_change: ChangeListener | None = None,
        compute_seconds: Callable[[int], float] = lambda tokens: float("inf"),
        policy: ReusePolicy | None = None,
    ) -> None:
        """Args:
        gpu_blocks: capacity of the GPU pool.
        host_blocks: capacity of the host tier; may be 0.
        config: names the policies.
        mover: carries blocks between the two.
        clock: the engine's.
        on_change: told of every block that enters or leaves a tier.
        compute_seconds: how long the prefill of a number of tokens takes; a load that takes longer is not made.
        policy: of the GPU tier; None: the one that `config` names.

        Raises:
            InvalidArgument: an unknown policy.
        """
        self.tree = PrefixTree()
        self._policies = (
            policy or make_policy(config.policy, config),
            make_policy(config.host_policy, config, "cache.host_policy"),
        )
        self._half_life = config.lfu_half_life_s
        self.tiers = Tiers(self.tree, (gpu_blocks, host_blocks), self._policies, mover, clock, on_change)
        self.workflows = Workflows(self._policies, self.tiers, clock)
        self._clock = clock
        self._compute_seconds = compute_seconds
        self.leases = 0
        self.popularity = PrefixPopularity(_CATALOG * gpu_blocks)

    @property
    def policy(self) -> ReusePolicy:
        """The reuse policy of the GPU tier."""
        return self._policies[0]

    # --- sequences ---

    def captured(self, namespace: Namespace, tokens: bytes) -> dict[Tier, int]:
        """Tokens of a prompt that each tier holds and a sequence could use now. Changes nothing."""
        match = self.tree.match(self.tree.root(namespace), tokens, _usable_blocks(tokens))
        on_gpu = _gpu_blocks(match)
        return _tokens_by_tier(on_gpu, match.blocks - on_gpu)

    def queued(self, workflow: str, tokens: bytes) -> None:
        """A step has been queued: what it will use is certain, where its workflow has run here before.

        Args:
            workflow: whose step it is.
            tokens: its prompt; empty: it was withdrawn.
        """
        self.workflows.step_queued(workflow, tokens)

    def open(
        self,
        namespace: Namespace,
        tokens: bytes,
        workflow: str,
        agent: str,
        step: int,
        prompt_tokens: int,
        reserve: int = 0,
        again: bool = False,
        graph: StepGraph | None = None,
        beside: CacheHandle | None = None,
    ) -> CacheHandle | None:
        """Finds the longest cached prefix, brings it to the GPU, and keeps it there.

        Args:
            namespace: of the model and tenant.
            tokens: all tokens of the sequence so far; at least the last is left to be computed.
            workflow: who asks.
            agent: which agent of it.
            step: at which of its steps.
            prompt_tokens: how many of `tokens` are prompt.
            reserve: blocks that running sequences will still need.
            again: it was open before, and closed unfinished: what it finds is not counted a second time.
            graph: that the workflow has declared; None leaves what is known of it.
            beside: another cache's lease on the same step, whose record of the workflow serves for both.

        Returns:
            None when the GPU has no room for the whole of `tokens`, one block more, and the reserve.
        """
        tree, root = self.tree, self.tree.root(namespace)
        match = tree.match(root, tokens, _usable_blocks(tokens))
        path = self._whole(match)
        if path:
            tree.lock(path[-1])
        on_gpu = sum(node.held[GPU] for node in path)
        if self.tiers.room() < blocks_for(count(tokens)) + 1 - on_gpu + reserve:
            if path:
                self._unlock(path[-1])
            return None
        now = self._clock.now()
        owner = self.workflows.enter(workflow, graph, None if beside is None else beside.owner.record, now)
        lease = self._lease(owner, root, tokens, agent, step, full_blocks(prompt_tokens), now, beside)
        self.workflows.step_began(owner, step, agent, lease.position, now)
        loaded = 0
        if on_gpu < match.blocks:
            loaded = self._load(path, match.blocks - on_gpu)
            path = self._keep_gpu_part(path)
        for node in path:
            self._enter(lease, node, now)
        lease.delivered = _tokens_by_tier(on_gpu, loaded)
        self.leases += 1
        return lease

    def grow(self, lease: CacheHandle, tokens: int) -> bool:
        """Makes room for `tokens` tokens in all. False when the GPU has none; the lease stays as it was."""
        slots = self.tiers.take(max(0, blocks_for(tokens) - len(lease.table)))
        if slots is None:
            return False
        lease.table.extend(slots)
        return True

    def commit(self, lease: CacheHandle, tokens: bytes | bytearray, computed: int | None = None) -> None:
        """Enters the blocks that have filled up into the tree.

        Where another sequence has entered the same blocks meanwhile, the lease goes on with those and gives its own back.

        Args:
            lease: the sequence's.
            tokens: of the sequence, from its start.
            computed: how many of them have had their KV computed; None: all.
        """
        full = len(tokens) // BLOCK_BYTES if computed is None else full_blocks(computed)
        now = self._clock.now()
        if lease.records and full > lease.known:
            written = lease.owner.record.write(lease.position, bytes(tokens[lease.known * BLOCK_BYTES : full * BLOCK_BYTES]))
            lease.segments.extend(written if not lease.segments or written[0] is not lease.segments[-1] else written[1:])
        while lease.committed < full:
            segment = lease.segment(lease.committed)
            stop = min(full, segment.stop)
            if stop == segment.stop and segment.start == lease.committed:
                part = segment.tokens  # it lies in memory once
            else:
                part = bytes(tokens[lease.committed * BLOCK_BYTES : stop * BLOCK_BYTES])
            child = lease.node.children.get(part[:BLOCK_BYTES])
            if child is not None:
                self._follow(lease, child, part, now)
            else:
                self._write(lease, part, stop, now)

    def close(self, lease: CacheHandle) -> None:
        """Ends the hold. What was committed stays cached; the rest is freed."""
        self.tiers.give(lease.table[lease.committed :])
        now = self._clock.now()
        if lease.records:
            lease.owner.record.end(lease.position, now)
        self.workflows.step_ended(lease.owner, now)
        if lease.node.writer is lease:
            lease.node.writer = None
        if not lease.node.is_root:
            self._unlock(lease.node)
        lease.table = new_slots()
        self.leases -= 1

    # --- workflows ---

    def retire(self, workflow: str) -> None:
        """The workflow has ended: what only it held goes first from now on."""
        self.workflows.retire(workflow)

    def apply(self, forecast: Forecast) -> bool:
        """Folds a forecast into the values of its workflow's nodes. False if it is old, or the workflow not known here."""
        if not forecast.ended:
            return self.workflows.apply(forecast)
        known = self.workflows.expects(forecast)
        if known:
            self.retire(forecast.workflow)
        return known

    # --- operators ---

    def prefetch(self, namespace: Namespace, tokens: bytes) -> Prefetched:
        """Brings the cached prefix of a prompt to the GPU, into free space and that of ended workflows only."""
        match = self.tree.match(self.tree.root(namespace), tokens)
        path = self._whole(match)
        if not path:
            return Prefetched(0, 0)
        self.tree.lock(path[-1])
        on_gpu = sum(node.held[GPU] for node in path)
        slots = self.tiers.take(match.blocks - on_gpu, retired_only=True) or new_slots()
        self.tiers.load(path, slots)
        self.tiers.decisions["prefetch"] += len(slots)
        self._unlock(path[-1])
        return Prefetched(len(slots) * BLOCK_TOKENS, (on_gpu + len(slots)) * BLOCK_TOKENS)

    def clear(self) -> int:
        """Drops all that no running sequence uses. Returns the blocks dropped."""
        return self.tiers.clear()

    def used_blocks(self, level: Level) -> int:
        """Blocks of a level that are cached or in use."""
        return self.tiers.pools[level].used_slots

    def locked_blocks(self, level: Level) -> int:
        """Blocks of a level that running sequences use."""
        return self.used_blocks(level) - self.tree.evictable[level]

    def guard(self) -> GuardStat | None:
        """What a guard has seen and done; None where there is none."""
        return None

    def residency(self) -> Mapping[bytes, frozenset[Tier]]:
        """Every cached block's key and the tiers that hold it."""
        found: dict[bytes, frozenset[Tier]] = {}
        for node in self.tree.walk():
            for block in range(node.blocks):
                found[node.key(block)] = frozenset(
                    level.tier for level in LEVELS if node.slots[level] and node.slots[level][block] != ABSENT
                )
        return found

    # --- inside ---

    def _lease(
        self,
        owner: Owner,
        root: Node,
        tokens: bytes,
        agent: str,
        step: int,
        prompt_blocks: int,
        now: float,
        beside: CacheHandle | None,
    ) -> CacheHandle:
        """A lease on nothing yet, and the step in its workflow's record, where one is kept."""
        if not self.workflows.recorded:
            return CacheHandle(owner, prompt_blocks, root, 0, UNRECORDED, False)
        if beside is not None:
            return CacheHandle(owner, prompt_blocks, root, beside.position, beside.segments, False)
        position = owner.record.begin(step, agent, bytes(tokens), prompt_blocks, now, self.popularity)
        return CacheHandle(owner, prompt_blocks, root, position, owner.record.path(position), True)

    def _whole(self, match: Match) -> list[Node]:
        """The nodes of a match, the last cut to the part that matched."""
        path = match.path
        if path and match.last_blocks < path[-1].blocks:
            lower = path[-1]
            path[-1] = self.tree.split(lower, match.last_blocks)
            self.tiers.offer(path[-1])
            self.tiers.offer(lower)
        return path

    def _load(self, path: list[Node], blocks: int) -> int:
        """Loads the part of a path that lies in host memory, if that is faster than to compute it. Returns its blocks."""
        if self.tiers.load_seconds(blocks) > self._compute_seconds(blocks * BLOCK_TOKENS):
            self.tiers.decisions["load_skipped_slower"] += blocks
            return 0
        slots = self.tiers.take(blocks)
        assert slots is not None, "room was checked"
        self.tiers.load(path, slots)
        self.tiers.decisions["load"] += blocks
        return blocks

    def _keep_gpu_part(self, path: list[Node]) -> list[Node]:
        """Cuts a locked path to what the GPU holds of it, and unlocks the rest."""
        whole = [node for node in path if node.held[GPU] == node.blocks]
        if len(whole) == len(path):
            return path
        edge = path[len(whole)]
        if edge.held[GPU]:
            whole.append(self.tree.split(edge, edge.held[GPU]))
        if whole:
            self.tree.lock(whole[-1])
        self._unlock(path[-1])
        return whole

    def _unlock(self, node: Node) -> None:
        for part in self.tree.unlock(node):
            self.tiers.offer(part)

    def _enter(self, lease: CacheHandle, node: Node, now: float) -> None:
        """Goes down a node of the path, which the GPU holds whole. Cuts it where the workflow's own segments end."""
        while (cut := lease.segment(lease.committed).stop - lease.committed) < node.blocks:
            upper = self.tree.split(node, cut)
            self.tiers.offer(upper)
            self._pass(lease, upper, now)
        self._pass(lease, node, now)

    def _pass(self, lease: CacheHandle, node: Node, now: float) -> None:
        lease.table.extend(node.slots[GPU])
        self._touch(node, lease, now)
        lease.committed += node.blocks
        lease.node = node

    def _touch(self, node: Node, lease: CacheHandle, now: float) -> None:
        """Notes the use of a node that begins where the lease's committed part ends."""
        node.last_access = now
        node.uses = aged_uses(node.uses, now, self._half_life)
        node.writer = None
        owner = lease.owner
        if owner not in self.workflows:
            return  # the workflow ended while its step ran
        if owner not in node.owners:
            owner.nodes[node] = None
        segment = node.owners[owner] = lease.segment(lease.committed)
        if segment.prefix_stat is not None:
            node.entry = segment.prefix_stat

    def _write(self, lease: CacheHandle, part: bytes, stop: int, now: float) -> None:
        """Enters blocks that the tree does not know: in place where nobody else has come by the node, else as a new one."""
        node, start = lease.node, lease.committed
        slots, segment = lease.table[start:stop], lease.segment(start)
        if node.writer is lease and node.refs == 1 and not node.children and node.owners.get(lease.owner) is segment:
            first = node.blocks
            self.tree.append(node, part, slots)
            node.last_access = now
        else:
            node, first = self.tree.add_child(node, part, slots, segment.output), 0
            self.tree.lock_child(node)
            self._touch(node, lease, now)
            node.writer = lease
            lease.node = node
        self.tiers.note(node, first, node.blocks)
        lease.committed = stop

    def _follow(self, lease: CacheHandle, child: Node, part: bytes, now: float) -> None:
        """Goes on along a child that holds the same blocks. Its GPU slots replace the lease's; what it lacks it is given."""
        same = common_blocks(child.tokens, part, 0, len(part))
        if same < child.blocks:
            lower, child = child, self.tree.split(child, same)
            self.tiers.offer(lower)
        self.tree.lock_child(child)
        start, held = lease.committed, child.held[GPU]
        self.tiers.give(lease.table[start : start + held])
        lease.table[start : start + held] = child.slots[GPU][:held]
        if held < child.blocks:
            self.tiers.hold(child, held, lease.table[start + held : start + child.blocks])
        self._touch(child, lease, now)
        lease.node = child
        lease.committed += child.blocks

    def check_integrity(self) -> None:
        """Raises:
        AssertionError: tree, tiers and owners contradict each other.
        """
        from pbkv_cluster.cache.integrity import check_cache

        check_cache(self)


def _usable_blocks(tokens: bytes) -> int:
    """Blocks of a sequence that may come from the cache: its last token is computed in any case, to know what follows."""
    return (count(tokens) - 1) // BLOCK_TOKENS


def _tokens_by_tier(gpu_blocks: int, host_blocks: int) -> dict[Tier, int]:
    found = {}
    if gpu_blocks:
        found[Tier.GPU] = gpu_blocks * BLOCK_TOKENS
    if host_blocks:
        found[Tier.HOST] = host_blocks * BLOCK_TOKENS
    return found


def _gpu_blocks(match: Match) -> int:
    if not match.path:
        return 0
    *whole, last = match.path
    return sum(node.held[GPU] for node in whole) + min(last.held[GPU], match.last_blocks)
