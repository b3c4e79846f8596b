"""The GPU slots of a running sequence, in order, and who owns each."""

from pbkv_cluster.cache.sequence.recorded_step import RecordedStep
from pbkv_cluster.cache.tree.node import GPU, Node, Slots, new_slots
from pbkv_cluster.core.tokens import BLOCK_BYTES
from pbkv_cluster.reuse.record.segment import Segment


class BlockRange:
    """Blocks [start, stop) of a sequence, which have one owner and were in one segment of the workflow's record."""

    __slots__ = ("node", "segment", "start", "stop")

    def __init__(self, start: int, stop: int, node: Node | None, segment: Segment) -> None:
        self.start = start
        self.stop = stop
        self.node = node  # node of the tree that ends at `stop`; None: the sequence owns the blocks
        self.segment = segment


class BlockTable:
    """Which slot holds each block, and to whom the slot belongs.

    | blocks | their slots belong to | at the sequence's end |
    |---|---|---|
    | [0, `committed`) | nodes of the tree, a range for each | stay cached |
    | [`committed`, `len`) | the sequence | are freed |

    The ranges of the tree are contiguous, and the sequence keeps their nodes locked. Other sequences may split a node later:
    its lower part stays the same object, so that it still ends where its range does, and new parents hold the blocks before.
    """

    __slots__ = ("_at", "_recorded", "committed", "node", "ranges", "slots")

    def __init__(self, root: Node, recorded: RecordedStep) -> None:
        self.node = root  # at which the tree's part ends; the root if that is empty
        self._recorded = recorded
        self._at = 0  # in its segments
        self.slots: Slots = new_slots()
        self.ranges: list[BlockRange] = []  # the tree's
        self.committed = 0  # blocks that belong to the tree

    def __len__(self) -> int:
        """Blocks that have a slot."""
        return len(self.slots)

    @property
    def own_slots(self) -> Slots:
        """The slots that belong to the sequence."""
        return self.slots[self.committed :]

    def continuation(self, tokens: bytes | bytearray) -> Node | None:
        """What the tree has of a sequence with these tokens after the part that belongs to it."""
        start = self.committed * BLOCK_BYTES
        return self.node.children.get(bytes(tokens[start : start + BLOCK_BYTES]))

    def segment(self, block: int) -> Segment:
        """The segment that holds a block of the sequence. Must not be called with a lower block than before."""
        segments = self._recorded.segments
        while segments[self._at].stop <= block:
            self._at += 1
        segment = segments[self._at]
        while segment.start > block:  # another step of the workflow has split it since
            assert segment.parent is not None
            segment = segment.parent
        return segment

    def next_range(self, computed: int) -> BlockRange:
        """The next blocks to commit: the sequence's own up to block `computed`, as far as they lie in one segment."""
        segment = self.segment(self.committed)
        return BlockRange(self.committed, min(computed, segment.stop), None, segment)

    def extend(self, slots: Slots) -> None:
        """Adds slots that belong to the sequence."""
        self.slots.extend(slots)

    def attach(self, node: Node, segment: Segment) -> None:
        """Adds the blocks of a node that the GPU holds whole. Only while the sequence owns none."""
        assert self.committed == len(self.slots)
        self.slots.extend(node.slots[GPU])
        self.hand_over(BlockRange(self.committed, len(self.slots), None, segment), node)

    def hand_over(self, own: BlockRange, node: Node) -> None:
        """Gives the sequence's next blocks to a node that ends with them: the last range's, or a child of it."""
        assert own.start == self.committed
        if node is self.node:
            self.ranges[-1].stop = own.stop
        else:
            own.node = node
            self.ranges.append(own)
            self.node = node
        self.committed = own.stop

    def replace(self, slots: Slots) -> Slots:
        """Replaces the sequence's first own slots with others that hold the same. Returns its own, to be freed."""
        start, stop = self.committed, self.committed + len(slots)
        replaced = self.slots[start:stop]
        self.slots[start:stop] = slots
        return replaced

    def clear(self) -> Slots:
        """Ends the table. Returns the slots that belonged to the sequence, to be freed."""
        own = self.own_slots
        del self.slots[:]
        self.ranges, self.committed = [], 0
        return own
