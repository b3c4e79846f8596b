"""What becomes of blocks that are copied ahead of need, to the GPU or from it: each ends as used, wasted or cancelled."""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from enum import StrEnum

from pbkv_cluster.cache.tree.node import GPU, Node
from pbkv_cluster.cache.tree.staged import Staged, mask_of
from pbkv_cluster.core.usage import Tier

_STAGED_IN = (GPU, GPU + 1)  # index of the GPU, and of host memory, which comes after it


class PrefetchSource(StrEnum):
    """Why blocks were prefetched."""

    QUEUE = "queue"  # a queued step will use them
    FORECAST = "forecast"  # an active workflow is likely to use them soon
    REQUEST = "request"  # a client asked for them


LOAD_REASONS: Mapping[PrefetchSource | None, str] = {
    None: "load",
    PrefetchSource.QUEUE: "prefetch_queue",
    PrefetchSource.FORECAST: "prefetch_forecast",
    PrefetchSource.REQUEST: "prefetch",
}
"""Reason codes of loads to the GPU; None: for a step that is being admitted."""


@dataclass(slots=True)
class PrefetchCount:
    """Prefetched blocks. Those that are neither used nor wasted nor cancelled lie on the GPU, or are on their way to it."""

    loaded: int = 0
    used: int = 0  # by a step, while the GPU held them
    wasted: int = 0  # they left the GPU before that
    cancelled: int = 0  # they did not arrive

    @property
    def pending(self) -> int:
        """Blocks whose end is not known yet."""
        return self.loaded - self.used - self.wasted - self.cancelled

    def __add__(self, other: "PrefetchCount") -> "PrefetchCount":
        return PrefetchCount(
            self.loaded + other.loaded,
            self.used + other.used,
            self.wasted + other.wasted,
            self.cancelled + other.cancelled,
        )


class EarlyDemotionLedger:
    """Counts blocks that were copied to the next tier before they left the GPU.

    Each ends as used when it leaves the GPU, and as wasted when a step uses it there before that, or when its copy is dropped.
    """

    def __init__(self) -> None:
        self.count = PrefetchCount()

    def copied(self, node: Node, blocks: int) -> None:
        """So many of a node's blocks have been copied."""
        node.demoted_early += blocks
        self.count.loaded += blocks

    def left(self, node: Node, blocks: int) -> None:
        """The GPU loses so many of a node's blocks, the last ones."""
        used = min(node.demoted_early, blocks)
        node.demoted_early -= used
        self.count.used += used

    def wasted(self, node: Node) -> None:
        """A step uses a node on the GPU, or its copies are dropped."""
        self.count.wasted += node.demoted_early
        node.demoted_early = 0


class StagingLedger:
    """Counts blocks that were brought to host memory ahead of their use, by why they were.

    Each lies on the GPU or in host memory, or is on its way there, until it ends: as used when a step uses it, as wasted when
    the last of these two loses it before that, and as cancelled when it did not arrive.
    """

    def __init__(self) -> None:
        self._counts = {reason: PrefetchCount() for reason in PrefetchSource}

    def count(self, reason: PrefetchSource) -> PrefetchCount:
        """The blocks of one reason so far."""
        return replace(self._counts[reason])

    @property
    def total(self) -> PrefetchCount:
        """The blocks of all reasons so far."""
        return sum(self._counts.values(), PrefetchCount())

    def staged(self, node: Node, blocks: Iterable[int], reason: PrefetchSource, source: Tier) -> None:
        """Blocks of a node, which has none that were staged for another reason or from elsewhere, are on their way."""
        staged = Staged(reason, source, mask_of(blocks))
        self._counts[reason].loaded += staged.blocks
        node.staged = staged if node.staged is None else node.staged.and_those(staged)

    def used(self, node: Node) -> None:
        """A step uses all of a node."""
        if node.staged is not None:
            self._counts[PrefetchSource(node.staged.reason)].used += node.staged.blocks
            node.staged = None

    def leaving(self, node: Node, tier: int, blocks: Iterable[int], spoiled: Collection[int]) -> None:
        """A tier is about to lose some blocks.

        Args:
            node: theirs.
            tier: index of the tier.
            blocks: of the node.
            spoiled: slots of the tier that did not get their blocks.
        """
        staged = node.staged
        if staged is None or tier not in _STAGED_IN:
            return
        (other,) = (each for each in _STAGED_IN if each != tier)
        gone = set(blocks)
        lost = [
            block for block in staged.numbers() if block in gone and node.holds(tier, block) and not node.holds(other, block)
        ]
        absent = sum(node.slots[tier][block] in spoiled for block in lost)
        count = self._counts[PrefetchSource(staged.reason)]
        count.cancelled += absent
        count.wasted += len(lost) - absent
        node.staged = staged.without(lost)


class PrefetchLedger:
    """Counts prefetched blocks by their sources. A node has blocks of one source at a time, the earliest that is not settled.

    The blocks of a node that count as prefetched are the last that the GPU holds, since it holds a leading run.
    """

    def __init__(self) -> None:
        self._counts = {source: PrefetchCount() for source in PrefetchSource}
        self.early = EarlyDemotionLedger()
        self.staging = StagingLedger()

    def count(self, source: PrefetchSource) -> PrefetchCount:
        """The blocks of one source so far."""
        return replace(self._counts[source])

    @property
    def total(self) -> PrefetchCount:
        """The blocks of all sources so far."""
        return sum(self._counts.values(), PrefetchCount())

    def loaded(self, node: Node, blocks: int, source: PrefetchSource) -> None:
        """The last blocks that the GPU holds of a node have been prefetched."""
        if not node.prefetched:
            node.prefetched_for = source
        node.prefetched += blocks
        self._counts[PrefetchSource(node.prefetched_for)].loaded += blocks

    def used(self, node: Node) -> None:
        """A step uses all of a node."""
        if node.prefetched:
            self._counts[PrefetchSource(node.prefetched_for)].used += node.prefetched
            node.prefetched = 0

    def leaving(self, node: Node, start: int, spoiled: Collection[int]) -> None:
        """The GPU is about to lose a node's blocks from `start` on, of which those in `spoiled` slots have not arrived."""
        held = node.held[GPU]
        unused = min(node.prefetched, held - start)
        if unused > 0:
            lost = sum(slot in spoiled for slot in node.slots[GPU][held - unused : held]) if spoiled else 0
            count = self._counts[PrefetchSource(node.prefetched_for)]
            count.cancelled += lost
            count.wasted += unused - lost
            node.prefetched -= unused
