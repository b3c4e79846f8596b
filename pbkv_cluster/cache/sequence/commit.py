"""How computed blocks of a running sequence enter the prefix tree, where other sequences can match them."""

from pbkv_cluster.cache.sequence.block_table import BlockRange
from pbkv_cluster.cache.sequence.handle import CacheHandle
from pbkv_cluster.cache.sequence.paths import Paths
from pbkv_cluster.cache.sequence.stored_blocks import StoredBlocks
from pbkv_cluster.cache.tiers.tiers import Tiers
from pbkv_cluster.cache.tree.node import GPU, Node
from pbkv_cluster.cache.tree.prefix_tree import PrefixTree
from pbkv_cluster.core.tokens import BLOCK_BYTES, common_blocks


class Committer:
    """Hands blocks over from sequences to the tree, range by range."""

    def __init__(self, tree: PrefixTree, tiers: Tiers, paths: Paths, stored: StoredBlocks, write_through: bool) -> None:
        """Args:
        tree: that takes the blocks.
        tiers: where they lie.
        paths: of the tree.
        stored: blocks of an earlier process, some of which may follow those that are committed.
        write_through: copy blocks to the next tier at once, and not only when they leave the GPU.
        """
        self._tree = tree
        self._tiers = tiers
        self._paths = paths
        self._stored = stored
        self._write_through = write_through

    def commit(
        self, handle: CacheHandle, tokens: bytes | bytearray, computed: int, now: float, reason: str = "compute"
    ) -> None:
        """Commits a sequence's blocks up to block `computed`.

        Args:
            handle: the sequence's.
            tokens: of the sequence, from its start.
            computed: blocks.
            now: seconds.
            reason: code of why the GPU has those that the tree lacks.
        """
        if handle.records:
            handle.recorded.extend(tokens, computed)
        table = handle.table
        while table.committed < computed:
            own = table.next_range(computed)
            if (own.start, own.stop) == (own.segment.start, own.segment.stop):
                part = own.segment.tokens  # so that the tree and the record share one copy
            else:
                part = bytes(tokens[own.start * BLOCK_BYTES : own.stop * BLOCK_BYTES])
            child = table.node.children.get(part[:BLOCK_BYTES])
            if child is None:
                node, first = self._write(handle, own, part, now, reason)
                if self._stored.follow(node, first, node.blocks, now):
                    handle.continued = table.continuation(tokens) is not None
            else:
                self._follow(handle, own, child, part, now)

    def _write(self, handle: CacheHandle, own: BlockRange, part: bytes, now: float, reason: str) -> tuple[Node, int]:
        """Enters a range that the tree does not hold: at the end of the last node if that is still this sequence's alone, else
        as a new one. Returns the node, and which of its blocks is the first of the range.
        """
        table, node = handle.table, handle.table.node
        slots = table.slots[own.start : own.stop]
        if node.writer is handle and node.refs == 1 and not node.children and node.owners.get(handle.owner) is own.segment:
            first = node.blocks
            self._tree.append(node, part, slots)
            node.last_access = now
        else:
            node, first = self._tree.add_child(node, part, slots, own.segment.output), 0
            self._tree.lock_child(node)
            self._paths.use(node, handle, own.segment, now)
            node.writer = handle
        self._tiers.log.note(reason, node, range(first, node.blocks))
        if self._write_through:
            self._tiers.write_through(node, first, node.blocks)
        self._tiers.note(node, first, node.blocks)
        table.hand_over(own, node)
        return node, first

    def _follow(self, handle: CacheHandle, own: BlockRange, child: Node, part: bytes, now: float) -> None:
        """Continues along a node with the same blocks: its GPU slots replace the sequence's, and it gets those it lacks.

        Those whose blocks have not arrived yet are replaced by the sequence's, so that it waits for nothing that it has
        computed; unless other sequences wait for them, and so have set how long for.
        """
        table = handle.table
        same = common_blocks(child.tokens, part, 0, len(part))
        if same < child.blocks:
            lower, child = child, self._tree.split(child, same)
            self._tiers.offer(lower)  # the upper part is about to be locked
        if not child.refs:
            self._tiers.give_up_arriving(child)
        self._tree.lock_child(child)
        held = child.held[GPU]
        self._tiers.give(table.replace(child.slots[GPU][:held]))
        writers = self._tiers.gpu.pool.writers(child.slots[GPU][:held])
        for transfer in writers:
            transfer.expedite()
        handle.waits_for += writers
        if held < child.blocks:
            self._tiers.hold(child, held, table.slots[own.start + held : own.start + child.blocks])
        self._paths.use(child, handle, own.segment, now)
        own.stop = own.start + child.blocks
        table.hand_over(own, child)
