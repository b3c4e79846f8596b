"""Staging: blocks on the disk and on other nodes are brought to host memory before a step, or the GPU, asks for them.

It is as careful as a prefetch, and more: a transfer is started only while nothing else comes from the same place, it takes
free slots and those of ended workflows that are worth less, and it stops for a while where too little of it was used.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

from pbkv_cluster.cache.eviction import Rank
from pbkv_cluster.cache.owners import ActiveWorkflows
from pbkv_cluster.cache.policies.base import ForesightPolicy
from pbkv_cluster.cache.prefetch.missing import MissingNodes
from pbkv_cluster.cache.prefetch.planner import LIKELY, QUEUED_MAX, QueuedPrompt
from pbkv_cluster.cache.prefetch.usefulness import Usefulness
from pbkv_cluster.cache.sequence.fetch import Fetcher
from pbkv_cluster.cache.sequence.paths import Paths
from pbkv_cluster.cache.sequence.remote import RemoteSteps
from pbkv_cluster.cache.tiers.prefetch_ledger import PrefetchSource
from pbkv_cluster.cache.tiers.tiers import Tiers
from pbkv_cluster.cache.tree.node import GPU, Node, Owner, Slots, new_slots
from pbkv_cluster.cache.tree.prefix_tree import PrefixTree, lineage
from pbkv_cluster.core.tokens import BLOCK_BYTES
from pbkv_cluster.core.usage import Tier

STAGE_REASONS = {
    PrefetchSource.QUEUE: "stage_queue",
    PrefetchSource.FORECAST: "stage_forecast",
    PrefetchSource.REQUEST: "stage_request",
}
_HOST = GPU + 1
_UNMEASURED = 16  # blocks, while no transfer of the kind has been measured
_MOST = 256  # blocks, each time
_WORKFLOWS = 4  # whose steps on other workers are looked at, each time


class Stager:
    """Stages for one cache. Its thread asks between two batches, and for requests of clients."""

    def __init__(
        self, tree: PrefixTree, tiers: Tiers, workflows: ActiveWorkflows, paths: Paths, fetcher: Fetcher, remote: RemoteSteps
    ) -> None:
        """Args:
        tree: of the cache.
        tiers: of its blocks.
        workflows: that may use them.
        paths: of the tree.
        fetcher: gets blocks from other workers.
        remote: the workflows' steps on other workers.
        """
        self._tree = tree
        self._tiers = tiers
        self._workflows = workflows
        self._paths = paths
        self._fetcher = fetcher
        self._remote = remote
        self._missing = MissingNodes(workflows, _is_far)
        self._locked: list[Node] = []  # that must not make room for others in this run
        self._turn: list[Owner] = []  # workflows whose steps on other workers are to be looked at in this round
        self._useful = {reason: Usefulness() for reason in (PrefetchSource.QUEUE, PrefetchSource.FORECAST)}

    def run(self, seconds: float, prompts: Sequence[QueuedPrompt], now: float) -> int:
        """Starts the transfers that are worth making now. Returns the blocks.

        Args:
            seconds: that they may take.
            prompts: of the steps that wait, in the order in which they will be admitted.
            now: seconds.
        """
        queued = [(self._tree.root(prompt.namespace), prompt.tokens) for prompt in prompts[:QUEUED_MAX]]
        for root, tokens in queued:  # first: what one step will use must not leave for another's
            self._lock_match(root, tokens)
        staged = sum(self._stage_prompt(root, tokens, PrefetchSource.QUEUE, seconds, now).total() for root, tokens in queued)
        policy = self._foresight()
        if policy is not None:
            staged += self._stage_nodes(policy, seconds, now)
            staged += sum(self._stage_context(owner, policy, seconds, now) for owner in self._owners())
        self._unlock()
        return staged

    def request(self, root: Node, tokens: bytes, now: float) -> Mapping[Tier, int]:
        """Stages what a client has asked for and the GPU has no room for. Returns the blocks, by where they lie."""
        staged = self._stage_prompt(root, tokens, PrefetchSource.REQUEST, float("inf"), now)
        self._unlock()
        return staged

    def _lock_match(self, root: Node, tokens: bytes) -> list[Node]:
        """Locks what the tree has of a prompt, until `_unlock`."""
        path = self._paths.lock_match(self._tree.match(root, tokens))
        self._locked += path[-1:]
        return path

    def _unlock(self) -> None:
        for node in self._locked:
            self._paths.unlock_node(node)
        self._locked.clear()

    def _stage_prompt(self, root: Node, tokens: bytes, reason: PrefetchSource, seconds: float, now: float) -> Counter[Tier]:
        """Stages what the cache has of a prompt on the disk, and what other nodes have after that. Locks both."""
        path = self._lock_match(root, tokens)
        policy = self._foresight()
        value = None if policy is None else self._comparable(policy.certain_value(now))
        staged = Counter({Tier.DISK: sum(self._from_disk(node, reason, value, seconds, now) for node in path)})
        matched = sum(node.blocks for node in path)
        room = self._budget(Tier.REMOTE, seconds, reason, now) if matched < len(tokens) // BLOCK_BYTES else 0
        if room:
            above = path[-1] if path else root
            kinds, keys = self._fetcher.elsewhere(above, tokens, matched, room)
            count = next((at for at, kind in enumerate(kinds) if kind is not Tier.REMOTE), len(kinds))
            slots = self._take(count, value)
            if slots:
                child = self._fetcher.stage(above, tokens, matched, Tier.REMOTE, keys[: len(slots)], slots)
                self._tree.lock(child)
                self._locked.append(child)
                self._paths.expect(child, now)
                self._note(child, range(child.blocks), reason, Tier.REMOTE)
                staged[Tier.REMOTE] = child.blocks
                self._fetcher.staged(child, now)
        return staged

    def _stage_nodes(self, policy: ForesightPolicy, seconds: float, now: float) -> int:
        """Stages what active workflows are likely to use soon and the disk alone has."""
        if not self._budget(Tier.DISK, seconds, PrefetchSource.FORECAST, now):
            return 0
        nodes = self._missing.take()
        if not nodes:
            return 0
        likely = zip(policy.soon_used(nodes, now), range(len(nodes)), nodes, strict=True)
        values = dict(zip(nodes, policy.values(nodes, now), strict=True))
        staged = 0
        for soon, _, node in sorted(likely, reverse=True):
            if soon < LIKELY:
                break
            if node.parent is None:
                continue  # room for an earlier one has cost it its place
            self._tree.lock(node)
            for part in reversed(list(lineage(node))):  # what it follows is of no less use
                staged += self._from_disk(part, PrefetchSource.FORECAST, self._comparable(values[node]), seconds, now)
            self._paths.unlock_node(node)
        return staged

    def _from_disk(self, node: Node, reason: PrefetchSource, value: float | None, seconds: float, now: float) -> int:
        """Stages those blocks of a locked node that only slower tiers than the host have."""
        if not any(node.held[_HOST + 1 :]):
            return 0
        staged = 0
        for index, first, stop in tuple(node.runs(node.held[GPU], node.blocks)):
            tier = next(tier for tier in self._tiers if tier.index == index)
            if index <= _HOST or staged or (node.staged is not None and node.staged[:2] != (reason, tier.kind)):
                continue  # what was staged in another way is to be settled first
            blocks = range(first, min(stop, first + self._budget(tier.kind, seconds, reason, now)))
            worth = self._tiers.costs.worth_loading(tier.kind, len(blocks)) if blocks else 0
            self._tiers.decisions["stage_skipped_slower"] += len(blocks) - worth
            blocks = blocks[:worth]
            slots = self._take(len(blocks), value) if blocks else None
            if slots:
                blocks = blocks[: len(slots)]
                sources = node.slots[index][blocks[0] : blocks[-1] + 1]
                host, labels = self._tiers[Tier.HOST], tuple(node.labels(blocks))
                self._tiers.in_flight.submit(tier.pool, sources, host.pool, slots, labels, urgent=False)
                self._tree.place(node, _HOST, first, slots)
                if reason is not PrefetchSource.FORECAST:
                    node.last_access = now  # it is about to be used: LRU must not take it first
                self._tiers.note(node, first, first + len(slots))
                self._note(node, blocks, reason, tier.kind)
                staged += len(slots)
        return staged

    def _note(self, node: Node, blocks: range, reason: PrefetchSource, source: Tier) -> None:
        self._tiers.prefetched.staging.staged(node, blocks, reason, source)
        self._tiers.log.note(STAGE_REASONS[reason], node, blocks)
        self._tiers.decisions[STAGE_REASONS[reason]] += len(blocks)
        self._tiers.decisions[f"stage_from_{source.value}"] += len(blocks)
        self._tiers.offer(node)

    def _budget(self, kind: Tier, seconds: float, reason: PrefetchSource, now: float) -> int:
        """Blocks that may come from one kind of memory now."""
        if reason is not PrefetchSource.REQUEST and self._tiers.in_flight.reads_from(kind):
            return 0
        budget = _UNMEASURED
        waiting, one = (self._tiers.costs.copy_seconds(kind, Tier.HOST, blocks) for blocks in (0, 1))
        if one > waiting:
            budget = _MOST if seconds == float("inf") else min(_MOST, max(0, int((seconds - waiting) / (one - waiting) + 1e-9)))
        if reason in self._useful:
            allowance = self._useful[reason].allowance(self._tiers.prefetched.staging.count(reason), now)
            budget = budget if allowance is None else min(budget, allowance)
        return budget

    def _take(self, count: int, value: float | None) -> Slots:
        """Up to so many slots of host memory that are free, or hold blocks of ended workflows that are worth no more."""
        host = self._tiers[Tier.HOST]
        if not host.pool.capacity:
            return new_slots()
        self._tiers.before_eviction()
        while host.pool.room < count:  # slots that are leaving will be free for a later try: no more must go for this one
            found = host.active_queue.first()
            if found is None or not _may_leave(*found, value):
                break
            node, rank = found
            if not (slots := self._tiers.evictor.evict(host, node, count - host.pool.room, rank, waits=False)):
                break
            self._tiers.evictor.submit_demotions(host)
            host.pool.release(slots)
        return host.pool.take(min(count, host.pool.free_slots))

    def _owners(self) -> Iterator[Owner]:
        """The next of the workflows whose steps have run on other workers, too."""
        if not self._turn:
            self._turn = [owner for owner in self._workflows.all() if owner.remote and owner.remote_root is not None]
        taken, self._turn = self._turn[:_WORKFLOWS], self._turn[_WORKFLOWS:]
        yield from (owner for owner in taken if owner in self._workflows)

    def _stage_context(self, owner: Owner, policy: ForesightPolicy, seconds: float, now: float) -> int:
        """Stages the context of a workflow's latest step on another worker, if it is likely to be used soon."""
        root, position = owner.remote_root, owner.record.position(max(owner.remote))
        if root is None or position is None or not self._budget(Tier.REMOTE, seconds, PrefetchSource.FORECAST, now):
            return 0
        segments = owner.record.path(position)
        tokens = b"".join(segment.tokens for segment in segments)
        if not tokens:
            return 0
        match = self._tree.match(root, tokens)
        wanted = Node(tokens, match.path[-1] if match.path else root, len(self._tiers.pools))  # in no tree
        wanted.owners[owner] = segments[-1]
        owner.nodes[wanted] = None  # while it is asked: a policy knows the segments of its owners' nodes, and no others
        (soon,) = policy.soon_used([wanted], now)
        del owner.nodes[wanted]
        if soon < LIKELY:
            return 0
        staged = self._stage_prompt(root, tokens, PrefetchSource.FORECAST, seconds, now).total()
        if staged:
            self._remote.follow(owner, root, segments)
        return staged

    def _comparable(self, value: float) -> float:
        """A value by the GPU's policy, as the host's ranks can be compared with; if they cannot be, it is worth nothing."""
        return value if self._tiers[Tier.HOST].policy is self._tiers.gpu.policy else float("-inf")

    def _foresight(self) -> ForesightPolicy | None:
        """The policy of the GPU, if its values can be trusted and mean something."""
        policy = self._tiers.gpu.policy
        return policy if isinstance(policy, ForesightPolicy) and not self._tiers.lru_active else None


def _is_far(node: Node) -> bool:
    """Whether slower tiers than the host alone have some of its blocks."""
    return any(node.held[_HOST + 1 :]) and node.held[GPU] + node.held[_HOST] - node.copies(_HOST) < node.blocks


def _may_leave(node: Node, rank: Rank, value: float | None) -> bool:
    """Whether a block may leave host memory for one of some value; None: of a queued step, and values are not trusted."""
    return node.retired and not node.leases and (value is None or rank.value <= value)
