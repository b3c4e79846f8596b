"""How a sequence is admitted to the cache, in four phases: match, reserve, begin, attach."""

from collections.abc import Callable, Mapping

from pbkv_cluster.cache.owners import ActiveWorkflows
from pbkv_cluster.cache.sequence.fetch import Fetcher
from pbkv_cluster.cache.sequence.handle import CacheHandle
from pbkv_cluster.cache.sequence.paths import Paths
from pbkv_cluster.cache.sequence.recorded_step import UNRECORDED, RecordedStep
from pbkv_cluster.cache.step_identity import StepIdentity
from pbkv_cluster.cache.tiers.prefetch_ledger import LOAD_REASONS
from pbkv_cluster.cache.tiers.tiers import Tiers
from pbkv_cluster.cache.tiers.transfer import Transfer
from pbkv_cluster.cache.tree.node import GPU, Node
from pbkv_cluster.cache.tree.prefix_tree import Match, PrefixTree
from pbkv_cluster.core.blocks import Namespace
from pbkv_cluster.core.tokens import BLOCK_TOKENS, blocks_for, count, full_blocks
from pbkv_cluster.core.usage import Tier
from pbkv_cluster.reuse.record.prefix_popularity import PrefixPopularity

_HOST = GPU + 1


class Admission:
    """Turns a step into a `CacheHandle`.

    1. match: find the longest cached prefix, and lock it.
    2. reserve: check that the GPU has room for the rest; else unlock the prefix, and nothing has happened.
    3. begin: tell the workflow, its record and the policies of the step, before anything is evicted for it.
    4. attach: load the part of the prefix that lies in slower tiers, enter all of it in the block table, and begin to fetch
       what other workers have after it.
    """

    def __init__(
        self,
        tree: PrefixTree,
        tiers: Tiers,
        workflows: ActiveWorkflows,
        paths: Paths,
        popularity: PrefixPopularity,
        fetcher: Fetcher,
    ) -> None:
        """Args:
        tree: that prefixes are found in.
        tiers: where their blocks lie.
        workflows: that steps belong to.
        paths: of the tree.
        popularity: is shown every prompt of which a record is kept.
        fetcher: gets blocks from other workers.
        """
        self._tree = tree
        self._tiers = tiers
        self._workflows = workflows
        self._paths = paths
        self._popularity = popularity
        self._fetcher = fetcher

    def cached(self, namespace: Namespace, tokens: bytes) -> dict[Tier, int]:
        """Tokens of a prompt that each tier holds and a sequence could use now. Changes nothing."""
        match = self._tree.match(self._tree.root(namespace), tokens, _usable_blocks(tokens))
        return _in_tokens(self._tiers.by_tier(match.path, match.blocks))

    def open(
        self,
        step: StepIdentity,
        tokens: bytes,
        reserve: int,
        shadow_of: CacheHandle | None,
        now: Callable[[], float],
        ahead: int | None,
    ) -> CacheHandle | None:
        """Admits a step; see `KVCache.open`."""
        root = self._tree.root(step.namespace)
        match = self._match(root, tokens)
        on_gpu = sum(node.held[GPU] for node in match.path)
        if not self._reserve(match, blocks_for(count(tokens)) + 1 - on_gpu + reserve):
            return None
        began_at = now()
        handle = self._begin(step, tokens, root, shadow_of, began_at)
        handle.ahead = ahead
        is_whole = self._attach(handle, match, on_gpu, began_at)
        if ahead is not None and is_whole:
            handle.fetched = _in_tokens(self._fetcher.fetch(handle, bytes(tokens), _usable_blocks(tokens), ahead, began_at))
            handle.delivered = {**handle.delivered, **handle.fetched}
        handle.waits_for = self._tiers.gpu.pool.writers(handle.table.slots)
        if handle.waits_for:
            patience_s = self._fetcher.patience_s((ahead or 0) + (handle.committed - on_gpu) * BLOCK_TOKENS)
            for transfer in handle.waits_for:
                self._tiers.in_flight.hasten(transfer, patience_s)
        return handle

    def _match(self, root: Node, tokens: bytes) -> Match:
        """The longest cached prefix, locked."""
        match = self._tree.match(root, tokens, _usable_blocks(tokens))
        self._paths.lock_match(match)
        return match

    def _reserve(self, match: Match, blocks: int) -> bool:
        """Whether the GPU has room for so many more blocks. If not, the prefix is unlocked."""
        if self._tiers.room() >= blocks:
            return True
        self._paths.unlock(match.path)
        return False

    def _begin(self, step: StepIdentity, tokens: bytes, root: Node, shadow_of: CacheHandle | None, now: float) -> CacheHandle:
        record = None if shadow_of is None else shadow_of.owner.record
        owner = self._workflows.enter(step.workflow, step.graph, record, now)
        prompt_blocks = full_blocks(step.prompt_tokens)
        if not self._workflows.recorded:
            recorded, records = UNRECORDED, False
        elif shadow_of is not None:
            recorded, records = shadow_of.recorded, False
        else:
            position = owner.record.begin(step.number, step.agent, bytes(tokens), prompt_blocks, now, self._popularity)
            recorded, records = RecordedStep.of(owner.record, position), True
        self._workflows.step_began(owner, step, recorded.position, now)
        return CacheHandle(owner, root, recorded, records)

    def _attach(self, handle: CacheHandle, match: Match, on_gpu: int, now: float) -> bool:
        """Loads what the GPU lacks and enters the prefix in the table. The GPU holds `on_gpu` blocks of it so far.

        Returns whether all of it is entered, and not only what the GPU has held.
        """
        path, blocks = self._worth_loading(match.path, match.blocks, on_gpu, handle.ahead or 0)
        delivered = self._tiers.by_tier(path, blocks)
        if on_gpu < blocks:
            self._load(path, blocks - on_gpu)
        late = on_gpu - delivered.get(self._tiers.gpu.kind, 0)
        handle.prefetched_tokens = (sum(node.prefetched for node in path) - late) * BLOCK_TOKENS
        for node in path:
            if node.staged is not None:
                tokens = handle.staged.get(node.staged.source, 0) + node.staged.blocks * BLOCK_TOKENS
                handle.staged[node.staged.source] = tokens
            self._enter(handle, node, now)
        handle.delivered = _in_tokens(delivered)
        return blocks == match.blocks

    def _worth_loading(self, path: list[Node], blocks: int, on_gpu: int, ahead: int) -> tuple[list[Node], int]:
        """Cuts a path to as many blocks as are loaded no later than computed; of fewer, half as many are tried each time.

        Before others, those go that lie beyond host memory, or are still being staged there: they may have to be waited for.

        Args:
            path: locked.
            blocks: of it.
            on_gpu: blocks of it that the GPU holds.
            ahead: tokens that are to be computed before those of its sequence, while the blocks come.

        Returns:
            What is left of it, and its blocks.
        """
        near, late = self._near(path, on_gpu)
        kept = blocks
        while kept > on_gpu:
            by_tier = self._tiers.by_tier(path, kept)
            # Copies that come from one tier queue together, and so are in the time of a load from there.
            elsewhere = (each for each in late if kept > near and each.source not in by_tier)
            wait_s = max((self._tiers.costs.copy_seconds(each.source, each.target, 0) for each in elsewhere), default=0.0)
            if self._tiers.costs.pays(by_tier, kept - on_gpu, ahead, wait_s):
                break
            least = near if kept > near else on_gpu
            kept = least + (kept - least) // 2
        if kept == blocks:
            return path, blocks
        self._tiers.decisions["load_skipped_slower"] += blocks - kept
        left = self._paths.cut(path, kept)
        for node in path:
            if node not in left:
                self._tiers.log.note("load_skipped_slower", node, range(node.blocks))
        return left, kept

    def _near(self, path: list[Node], on_gpu: int) -> tuple[int, set[Transfer]]:
        """How many of a path's first blocks lie on the GPU or in host memory, and what brings others to host memory."""
        near, is_near, late = on_gpu, True, set[Transfer]()
        for node in path:
            for tier, start, stop in node.runs(node.held[GPU], node.blocks):
                arrived, transfers = self._tiers.pools[tier].staging(node.slots[tier][start:stop])
                late |= transfers
                is_near = is_near and tier == _HOST
                near += arrived if is_near else 0
                is_near = is_near and not transfers
        return near, late

    def _load(self, path: list[Node], blocks: int) -> None:
        """Loads what the GPU lacks of a locked path: so many blocks."""
        slots = self._tiers.take(blocks)
        assert slots is not None, "room was checked"
        self._tiers.load(path, slots)
        self._tiers.decisions[LOAD_REASONS[None]] += blocks

    def _enter(self, handle: CacheHandle, node: Node, now: float) -> None:
        """Enters a node of the path in the table, split where the workflow's own segments end."""
        table = handle.table
        segment = table.segment(table.committed)
        while (blocks := segment.stop - table.committed) < node.blocks:
            upper = self._paths.split(node, blocks)
            self._paths.use(upper, handle, segment, now)
            table.attach(upper, segment)
            segment = table.segment(table.committed)
        self._paths.use(node, handle, segment, now)
        table.attach(node, segment)


def _usable_blocks(tokens: bytes) -> int:
    """Blocks of a sequence that may come from the cache. The last token is always computed, to predict the next."""
    return (count(tokens) - 1) // BLOCK_TOKENS


def _in_tokens(blocks: Mapping[Tier, int]) -> dict[Tier, int]:
    return {tier: count * BLOCK_TOKENS for tier, count in blocks.items()}
