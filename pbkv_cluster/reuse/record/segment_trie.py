"""The segments of one workflow as a trie: the operations from which its record is built, live or from a log."""

from __future__ import annotations

from pbkv_cluster.core.token_trie import Walk, cut, walk
from pbkv_cluster.core.tokens import BLOCK_BYTES
from pbkv_cluster.reuse.record.segment import Segment, lineage


class SegmentTrie:
    """Segments below an empty root. Without tokens it cannot be walked, but grows and is cut in the same way."""

    def __init__(self) -> None:
        self.segments: list[Segment] = []  # in the order in which they were made
        self._roots: dict[bytes, Segment] = {}  # by the tokens of their first block

    def walk(self, start: Segment | None, tokens: bytes) -> Walk[Segment]:
        """Goes along full blocks as far as they are known.

        Args:
            start: the segment that they follow; None: the root.
            tokens: of the blocks.
        """
        return walk(self._children(start), tokens, len(tokens))

    def add(self, parent: Segment | None, blocks: int, position: int, agent: str, output: bool, tokens: bytes) -> Segment:
        """A new segment after another.

        Args:
            parent: None: the root.
            blocks: its length.
            position: of the step that uses it first.
            agent: of that step.
            output: the step generates it.
            tokens: of the blocks; empty: not known.
        """
        segment = Segment(parent, 0 if parent is None else parent.stop, blocks, position, agent, output)
        if tokens:
            segment.tokens = tokens
            self._children(parent)[tokens[:BLOCK_BYTES]] = segment
        if parent is not None:
            parent.branches += 1
        self.segments.append(segment)
        return segment

    def split(self, segment: Segment, depth: int, position: int) -> Segment:
        """Cuts a segment so that one ends `depth` blocks from the root, and returns that one.

        Where a cut is needed it is the new upper part; the lower one stays the same object.
        """
        if depth == segment.stop:
            return segment
        siblings, blocks = self._children(segment.parent), depth - segment.start
        upper = segment.head(blocks, position)
        if segment.tokens:
            upper.tokens = segment.tokens[: blocks * BLOCK_BYTES]
            cut(segment, upper, siblings)
        else:
            segment.parent = upper
            segment.blocks -= blocks
        segment.start = depth
        self.segments.append(upper)
        return upper

    def at_depth(self, end: Segment, depth: int) -> Segment:
        """The segment of the path down to `end` that holds the last of the first `depth` blocks, at least one."""
        while end.start >= depth:
            assert end.parent is not None
            end = end.parent
        return end

    def extend(self, segment: Segment, blocks: int, tokens: bytes) -> None:
        """Makes a segment longer that nothing follows."""
        segment.blocks += blocks
        segment.tokens += tokens

    def path(self, end: Segment | None) -> list[Segment]:
        """The segments down to one, in order."""
        return lineage(end)

    def _children(self, segment: Segment | None) -> dict[bytes, Segment]:
        return self._roots if segment is None else segment.children
