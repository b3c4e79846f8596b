"""What the workflows of late have read, and how many of them: a token trie that outlives the blocks.

It tells how widely a part of a prompt is shared, also when no tier holds it any more, and how soon after its parent a workflow
comes to it. Bounded: beyond its capacity the ends of paths leave that were not read for longest.
"""

from __future__ import annotations

import heapq

from pbkv_cluster.core.tokens import BLOCK_BYTES, common_blocks

OFFSETS = 24


class PrefixStat:
    """A run of blocks that was always read together."""

    __slots__ = (
        "arrival",
        "blocks",
        "children",
        "first",
        "last",
        "parent",
        "parent_before",
        "queued",
        "step_sum",
        "tokens",
        "workflows",
    )

    def __init__(self, parent: PrefixStat | None, tokens: bytes, arrival: int) -> None:
        self.parent = parent  # None: the root
        self.tokens = tokens
        self.blocks = len(tokens) // BLOCK_BYTES
        self.children: dict[bytes, PrefixStat] = {}  # by the tokens of their first block
        self.workflows = 0  # that have read it
        self.arrival = arrival  # workflows that had come before it was made, and the one that made it
        self.parent_before = parent.workflows if parent is not None else 0  # that had read the parent by then
        self.first = [0] * OFFSETS  # workflows by the steps between their first use of the parent and of this
        self.step_sum = 0  # of the steps at which workflows came to it
        self.last = 0  # when it was read last, by the catalog's clock
        self.queued = False  # among those that may leave

    def count(self, step: int, offset: int) -> None:
        """A workflow reads it for the first time.

        Args:
            step: at which of its steps.
            offset: steps since it first used what lies above.
        """
        self.workflows += 1
        self.step_sum += step
        self.first[offset if offset < OFFSETS else -1] += 1

    def exposed(self, arrivals: int) -> int:
        """Workflows that might have read it: they have come since it is known, and, further down, have read its parent.

        Args:
            arrivals: workflows that have come so far.
        """
        if self.parent is None or self.parent.parent is None:
            return max(arrivals - self.arrival, self.workflows)
        return max(self.parent.workflows - self.parent_before, self.workflows)


class PrefixPopularity:
    """A trie of entries below a root without tokens."""

    def __init__(self, capacity: int) -> None:
        """Args:
        capacity: blocks.
        """
        self.capacity = capacity
        self.blocks = 0
        self.arrivals = 0  # workflows that have come
        self.root = PrefixStat(None, b"", 0)
        self._clock = 0  # prompts read
        # Every entry without children, by when it was last read as far as was known when it was pushed, and perhaps some that
        # have got children since: what a heap holds is put right when it surfaces.
        self._leaves: list[tuple[int, int, PrefixStat]] = []
        self._pushed = 0

    def read(self, prompt: bytes) -> list[PrefixStat]:
        """The entries of a prompt of full blocks, in order; made where they were missing. Whoever reads counts itself there."""
        self._clock += 1
        node, at, path = self.root, 0, []
        while at < len(prompt):
            child = node.children.get(prompt[at : at + BLOCK_BYTES])
            if child is None:
                child = self._make(node, prompt[at:])
            elif not prompt.startswith(child.tokens, at):
                child = self._split(child, common_blocks(child.tokens, prompt, at, len(prompt)))
            child.last = self._clock
            path.append(child)
            at += len(child.tokens)
            node = child
        if path and not node.children and not node.queued:
            self._push(node)
        while self.blocks > self.capacity:
            self._drop()
        return path

    def _make(self, parent: PrefixStat, tokens: bytes) -> PrefixStat:
        child = parent.children[tokens[:BLOCK_BYTES]] = PrefixStat(parent, tokens, self.arrivals)
        self.blocks += child.blocks
        return child

    def _split(self, lower: PrefixStat, blocks: int) -> PrefixStat:
        """Cuts an entry in two. Returns the new upper part; the lower stays the same object: whoever had read the whole read it
        together with what is its parent now."""
        parent, cut = lower.parent, blocks * BLOCK_BYTES
        assert parent is not None
        upper = PrefixStat(parent, lower.tokens[:cut], lower.arrival)
        upper.workflows, upper.parent_before, upper.last = lower.workflows, lower.parent_before, lower.last
        upper.first, upper.step_sum = lower.first, lower.step_sum
        lower.first = [lower.workflows] + [0] * (OFFSETS - 1)
        lower.parent_before = 0
        lower.parent = upper
        lower.tokens = lower.tokens[cut:]
        lower.blocks -= blocks
        parent.children[upper.tokens[:BLOCK_BYTES]] = upper
        upper.children[lower.tokens[:BLOCK_BYTES]] = lower
        return upper

    def _push(self, entry: PrefixStat) -> None:
        entry.queued = True
        self._pushed += 1  # entries themselves have no order
        heapq.heappush(self._leaves, (entry.last, self._pushed, entry))

    def _drop(self) -> None:
        """Drops the end of a path that was not read for longest, or finds that the first in the heap is another."""
        last, _, entry = heapq.heappop(self._leaves)
        entry.queued = False
        if entry.children:
            return
        if entry.last > last:
            self._push(entry)
            return
        parent = entry.parent
        assert parent is not None
        del parent.children[entry.tokens[:BLOCK_BYTES]]
        self.blocks -= entry.blocks
        if parent is not self.root and not parent.children and not parent.queued:
            self._push(parent)
