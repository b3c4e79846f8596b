"""How many workflows have read each prefix lately: a trie of prompts that outlives the cached blocks.

It tells how widely a part of a prompt is shared, also when no tier holds it any more, and how many steps after its parent
workflows read it. Beyond its capacity, the ends of paths that were read longest ago are dropped.
"""

from __future__ import annotations

import heapq

from pbkv_cluster.core.token_trie import cut, walk
from pbkv_cluster.core.tokens import BLOCK_BYTES

OFFSETS = 24


class PrefixStat:
    """A run of blocks that was always read together: a node of a trie, see `core/token_trie.py`."""

    __slots__ = (
        "blocks",
        "children",
        "last_read",
        "offsets",
        "parent",
        "parent_before",
        "queued",
        "step_sum",
        "tokens",
        "workflows",
        "workflows_before",
    )

    def __init__(self, parent: PrefixStat | None, tokens: bytes, workflows_before: int) -> None:
        self.parent = parent  # None: the root
        self.tokens = tokens
        self.blocks = len(tokens) // BLOCK_BYTES
        self.children: dict[bytes, PrefixStat] = {}  # by the tokens of their first block
        self.workflows = 0  # that have read it
        self.workflows_before = workflows_before  # that had begun when it was made, its first reader included
        self.parent_before = parent.workflows if parent is not None else 0  # that had read the parent by then
        self.offsets = [0] * OFFSETS  # workflows by the number of steps from their first use of the parent to that of this
        self.step_sum = 0  # of the steps at which workflows read it first
        self.last_read = 0  # by the trie's clock
        self.queued = False  # among those that may be dropped

    def count(self, step: int, offset: int) -> None:
        """A workflow reads it for the first time.

        Args:
            step: position of the step that reads it.
            offset: steps since the workflow first used what is above it.
        """
        self.workflows += 1
        self.step_sum += step
        self.offsets[offset if offset < OFFSETS else -1] += 1

    def above(self, blocks: int) -> PrefixStat:
        """The stat that holds the block so many blocks above this one's last."""
        stat = self
        while blocks >= stat.blocks and stat.parent is not None and stat.parent.parent is not None:
            blocks -= stat.blocks
            stat = stat.parent
        return stat

    def at_risk(self, workflow_count: int) -> int:
        """Workflows that could have read it: those that began since it is known or, further down, that read its parent since.

        Args:
            workflow_count: workflows that have begun so far.
        """
        if self.parent is None or self.parent.parent is None:
            return max(workflow_count - self.workflows_before, self.workflows)
        return max(self.parent.workflows - self.parent_before, self.workflows)


class PrefixPopularity:
    """A trie of prefix stats below a root without tokens."""

    def __init__(self, capacity: int) -> None:
        """Args:
        capacity: blocks.
        """
        self.capacity = capacity
        self.blocks = 0
        self.workflow_count = 0  # workflows that have begun so far
        self.root = PrefixStat(None, b"", 0)
        self.clock = 0  # prompts read
        # Every stat without children, by when it was last read as far as was known when it was pushed, and perhaps some that
        # have got children since: an entry is corrected when it comes to the top of the heap.
        self._leaves: list[tuple[int, int, PrefixStat]] = []
        self._pushed = 0

    def read(self, prompt: bytes) -> list[PrefixStat]:
        """The stats of a prompt of full blocks, in order; missing ones are added. The caller counts its workflow there."""
        self.clock += 1
        path, last_blocks, blocks = walk(self.root.children, prompt, len(prompt))
        if path and last_blocks < path[-1].blocks:
            path[-1] = self._split(path[-1], last_blocks)
        if blocks * BLOCK_BYTES < len(prompt):
            path.append(self._add(path[-1] if path else self.root, prompt[blocks * BLOCK_BYTES :]))
        for stat in path:
            stat.last_read = self.clock
        if path and not path[-1].children and not path[-1].queued:
            self._push(path[-1])
        while self.blocks > self.capacity:
            self._drop()
        return path

    def droppable(self) -> list[PrefixStat]:
        """The stats that are queued to be dropped. Slow: for tests."""
        return [stat for _, _, stat in self._leaves]

    def _add(self, parent: PrefixStat, tokens: bytes) -> PrefixStat:
        child = parent.children[tokens[:BLOCK_BYTES]] = PrefixStat(parent, tokens, self.workflow_count)
        self.blocks += child.blocks
        return child

    def _split(self, lower: PrefixStat, blocks: int) -> PrefixStat:
        """Cuts a stat in two. Returns the new upper part. Every workflow that has read the whole has read the lower part
        together with its new parent."""
        parent = lower.parent
        assert parent is not None
        upper = PrefixStat(parent, lower.tokens[: blocks * BLOCK_BYTES], lower.workflows_before)
        upper.workflows, upper.parent_before, upper.last_read = lower.workflows, lower.parent_before, lower.last_read
        upper.offsets, upper.step_sum = lower.offsets, lower.step_sum
        lower.offsets = [lower.workflows] + [0] * (OFFSETS - 1)
        lower.parent_before = 0
        cut(lower, upper, parent.children)
        return upper

    def _push(self, stat: PrefixStat) -> None:
        stat.queued = True
        self._pushed += 1  # stats themselves have no order
        heapq.heappush(self._leaves, (stat.last_read, self._pushed, stat))

    def _drop(self) -> None:
        """Drops the end of a path that was read longest ago, or corrects the heap's first entry."""
        last, _, stat = heapq.heappop(self._leaves)
        stat.queued = False
        if stat.children:
            return
        if stat.last_read > last:
            self._push(stat)
            return
        parent = stat.parent
        assert parent is not None
        del parent.children[stat.tokens[:BLOCK_BYTES]]
        self.blocks -= stat.blocks
        if parent is not self.root and not parent.children and not parent.queued:
            self._push(parent)
