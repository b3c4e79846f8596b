"""Write-through of fetched blocks: they enter the tree before their bytes are there, so they are copied when these are."""

from collections.abc import Sequence
from typing import NamedTuple

from pbkv_cluster.cache.tiers.tiers import Tiers
from pbkv_cluster.cache.tiers.transfer import Transfer
from pbkv_cluster.cache.tree.node import GPU, Node
from pbkv_cluster.cache.tree.prefix_tree import PrefixTree


class _Fetched(NamedTuple):
    """Blocks [start, end of the tokens) of a sequence."""

    root: Node
    tokens: bytes  # from the start of the sequence
    start: int
    transfers: Sequence[Transfer]


class LateWrites:
    """Fetched blocks of which copies are due in slower tiers."""

    def __init__(self, tree: PrefixTree, tiers: Tiers, write_through: bool) -> None:
        """Args:
        tree: that has the blocks.
        tiers: where they lie.
        write_through: whether blocks are copied before they leave the GPU; if not, nothing is ever due.
        """
        self._tree = tree
        self._tiers = tiers
        self._write_through = write_through
        self._due: list[_Fetched] = []

    def __len__(self) -> int:
        """Fetches that have not ended."""
        return len(self._due)

    def add(self, node: Node, tokens: bytes, start: int, transfers: Sequence[Transfer]) -> None:
        """A fetch has begun.

        Args:
            node: that the blocks follow, or a root.
            tokens: of their sequence, from its start to their end.
            start: of them in the sequence, in blocks.
            transfers: that bring them.
        """
        if self._write_through:
            while node.parent is not None:
                node = node.parent
            self._due.append(_Fetched(node, tokens, start, transfers))

    def run(self) -> None:
        """Copies the blocks whose fetch has ended, as far as they have arrived and are still on the GPU."""
        if not self._due:
            return
        ended = [fetched for fetched in self._due if all(transfer.done for transfer in fetched.transfers)]
        self._due = [fetched for fetched in self._due if fetched not in ended]
        for fetched in ended:
            stop = 0
            for node in self._tree.match(fetched.root, fetched.tokens).path:
                start, stop = stop, stop + node.blocks
                if stop > fetched.start and not self._copy(node, max(0, fetched.start - start)):
                    break

    def _copy(self, node: Node, start: int) -> bool:
        """Copies a node's blocks from `start` on. Returns whether all of them have arrived."""
        slots, spoiled = node.slots[GPU], self._tiers.gpu.pool.spoiled
        held = node.held[GPU]
        sound = next((block for block in range(start, held) if slots[block] in spoiled), held)
        if start < sound:
            self._tiers.write_through(node, start, sound)
            self._tiers.note(node, start, sound)
            self._tiers.order.resized(node)
        return sound == node.blocks
